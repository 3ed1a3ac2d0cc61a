"""Rows for other programs: JSON and CSV on standard output, and nothing else there."""

import base64
import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from polylight.errors import InputError
from polylight.inspect.terminal import printable

# Where a spreadsheet begins to calculate (OWASP, "CSV injection"). An apostrophe is among them, so
# that the one that is put before them can be taken away again.
_FORMULA = re.compile("[=+\\-@\t\r\n'\uff1d\uff0b\uff0d\uff20]")
# A neuron of negative sign, such as -blocks.4:17: without brackets it can call nothing.
_NEGATIVE_NEURON = re.compile(r"-[\w./-]+:\d+(@center|@\d+x\d+)?")


def check_format(*, as_json: bool, as_csv: bool) -> None:
    """Refuse two formats at a time.

    Args:
        as_json: Whether JSON is wanted.
        as_csv: Whether CSV is wanted.

    Raises:
        InputError: If both are.
    """
    if as_json and as_csv:
        raise InputError("--json and --csv were both given; choose one of them")


def to_json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as a JSON list of objects, one a line.

    What does not exist is null, and so are NaN and infinity, which JSON does not have. Bytes are
    in base64; times, durations and identifiers are text.

    Args:
        names: The columns' names.
        rows: As many values a row.

    Returns:
        Valid JSON (RFC 8259), which ends with a line feed.

    Raises:
        InputError: If two columns have the same name.
    """
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(
            f"two columns are called {twice!r}, which a JSON object cannot hold; "
            "rename one of them with AS, or take --csv"
        )
    lines = [
        json.dumps(
            {name: _jsonable(value) for name, value in zip(names, row, strict=True)},
            ensure_ascii=False,
            allow_nan=False,
        )
        for row in rows
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def to_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Write rows as CSV with a header (RFC 4180, so that lines end with ``\r\n``).

    What does not exist is an empty field. Numbers are written with all their digits; lists and
    structures are written as JSON. A text that a spreadsheet would take for a formula has an
    apostrophe before it, as OWASP advises, and so has one that begins with an apostrophe: a program
    takes the first apostrophe away. Names of neurons are as they are, ``-blocks.4:17`` too, since
    none of them can run anything.

    Args:
        names: The columns' names.
        rows: As many values a row.

    Returns:
        The text.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([_field(name) for name in names])
    writer.writerows([_field(value) for value in row] for row in rows)
    return text.getvalue()


def write_out(text: str) -> None:
    """Write text to standard output; a reader that has had enough, such as ``head``, may go.

    Characters that a terminal would obey are spelt out where it is one.
    """
    if sys.stdout.isatty():
        text = printable(text, keep="\r\n\t")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _jsonable(value: Any) -> Any:
    """Turn a value into one that JSON has."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return float(value)
        case bytes():
            return base64.b64encode(value).decode()
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case dict():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case _:
            return str(value)


def _field(value: Any) -> Any:
    """Turn a value into what the writer of CSV writes as it should be read."""
    match value:
        case bool():
            return "true" if value else "false"
        case list() | tuple() | dict():
            return json.dumps(_jsonable(value), ensure_ascii=False)
        case bytes():
            return _jsonable(value)
        case str() if _FORMULA.match(value) and not _NEGATIVE_NEURON.fullmatch(value):
            return f"'{value}"
        case _:
            return value
