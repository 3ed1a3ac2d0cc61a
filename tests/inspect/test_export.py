import csv
import io
import json
import math
import os
import sys
from datetime import date
from decimal import Decimal

import pytest

from polylight.errors import InputError
from polylight.inspect.export import to_csv, to_json, write_out


def test_values_that_json_does_not_have():
    names = ["nan", "inf", "decimal", "bytes", "date", "map", "list", "text"]
    row = (math.nan, -math.inf, Decimal("1.5"), b"\0\xff", date(2026, 1, 2), {1: math.nan})
    text = to_json(names, [(*row, [None, True, math.inf], 'ü"\n')])
    assert "ü" in text
    assert json.loads(text) == [
        {
            "nan": None,
            "inf": None,
            "decimal": 1.5,
            "bytes": "AP8=",
            "date": "2026-01-02",
            "map": {"1": None},
            "list": [None, True, None],
            "text": 'ü"\n',
        }
    ]
    with pytest.raises(InputError, match=r"two columns are called 'a'.*rename one"):
        to_json(["a", "b", "a"], [])


def test_fields_that_csv_has_to_quote():
    row = ("a,b", 'say "ü"', "two\r\nlines", None, False, [1, None], {"a": b"\0"}, 0.1 + 0.2, b"\0")
    text = to_csv(list("abcdefghi"), [row])
    assert text == (
        "a,b,c,d,e,f,g,h,i\r\n"
        '"a,b","say ""ü""","two\r\nlines",,false,"[1, null]","{""a"": ""AA==""}",'
        "0.30000000000000004,AA==\r\n"
    )
    assert next(csv.reader(io.StringIO(text.split("\r\n", 1)[1], newline="")))[:3] == list(row[:3])


def test_a_reader_that_has_gone_is_no_error(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        write_out("a" * 100_000)
        write_out("what comes later")
