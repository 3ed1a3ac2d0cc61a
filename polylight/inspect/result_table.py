"""What a query found, as a table for any width of the terminal."""

import math
from collections.abc import Sequence
from numbers import Number
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from polylight.inspect.terminal import bare_table, broken, printable

# A text in fewer characters than this is spelt rather than read.
_NARROWEST = 12
_GAP = 2


class Result(NamedTuple):
    """What a query found."""

    names: list[str]
    """The columns' names, in order; not always unique."""
    rows: list[tuple[Any, ...]]
    """As many values a row; None where there is none."""


def render_result(found: Result, width: int) -> RenderableType:
    """Lay out what a query found, whole: long values are broken into lines.

    Args:
        found: What it found.
        width: Width of the terminal, in characters.

    Returns:
        A table, or one for each row if there are too many columns to stand side by side.
    """
    cells = [[_cell(value) for value in row] for row in found.rows]
    count = Text(f"{len(cells):,} row{'s' if len(cells) != 1 else ''}", style="dim")
    names = [Text(printable(name)) for name in found.names]
    numeric = [_is_numeric([row[i] for row in found.rows]) for i in range(len(names))]
    widest = [max(_width(cell) for cell in column) for column in zip(names, *cells, strict=True)]
    least = [w if whole else min(w, _NARROWEST) for w, whole in zip(widest, numeric, strict=True)]
    room = width - _GAP * (len(names) - 1)
    if sum(least) > room:
        return Group(*(_record(names, row, width) for row in cells), count)
    shares = _shares(widest, least, room)
    laid = bare_table()
    for name, share, is_number in zip(names, shares, numeric, strict=True):
        laid.add_column(_broken(name, share), justify="right" if is_number else "left")
    for row in cells:
        laid.add_row(*(_broken(cell, share) for cell, share in zip(row, shares, strict=True)))
    return Group(laid, Text(), count)


def _is_numeric(column: Sequence[Any]) -> bool:
    """Tell a column that has numbers and nothing else; truth values are none."""
    given = [value for value in column if value is not None]
    return bool(given) and all(isinstance(v, Number) and not isinstance(v, bool) for v in given)


def _cell(value: Any) -> Text:
    """Lay out a value; texts are text, in which square brackets mean nothing."""
    return Text("-", style="dim") if value is None else Text(printable(_text(value), keep="\n"))


def _text(value: Any) -> str:
    """Write a value for people: numbers to six digits, pictures by their size."""
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.6g}" if math.isfinite(value) else str(value)
        case bytes():
            return f"{len(value):,} bytes"
        case list() | tuple():
            return f"[{', '.join(map(_text, value))}]"
        case dict():
            return f"{{{', '.join(f'{k}: {_text(v)}' for k, v in value.items())}}}"
        case _:
            return str(value)


def _width(cell: Text) -> int:
    """Width of the longest line."""
    return max(map(cell_len, cell.plain.split("\n")))


def _shares(widest: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Share room out: each column has as much as it needs, or else the longest have alike."""
    shares = [max(low, min(wide, room)) for wide, low in zip(widest, least, strict=True)]
    while sum(shares) > room:
        can_give = [i for i, share in enumerate(shares) if share > least[i]]
        shares[max(can_give, key=shares.__getitem__)] -= 1
    return shares


def _broken(cell: Text, width: int) -> Text:
    """Break a cell into lines behind spaces and between the tokens of names."""
    lines = (line for part in cell.plain.split("\n") for line in broken(part, width))
    return Text("\n".join(lines), style=cell.style)


def _record(names: Sequence[Text], row: Sequence[Text], width: int) -> RenderableType:
    """Lay out one row with its columns under each other."""
    first = min(max(map(_width, names)), width // 2)
    laid = Table.grid(padding=(0, _GAP, 0, 0))
    laid.add_column(style="bold")
    for name, cell in zip(names, row, strict=True):
        laid.add_row(_broken(name, first), _broken(cell, max(width - first - _GAP, 1)))
    return Group(laid, Text())
