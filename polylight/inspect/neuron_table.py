"""The table of a run's neurons, in any order and for any width of the terminal."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from rich.console import Group
from rich.text import Text

from polylight.inspect.query import bare_table
from polylight.run.schema import SCHEMA

Row = Mapping[str, Any]

SCALARS = tuple(field.name for field in SCHEMA if not pa.types.is_list(field.type))
"""The columns that hold one number or text a neuron."""

COLUMNS = (*SCALARS, "activation")
"""The columns of a run that ``render_table`` needs; no pictures, so any run fits in memory."""

_ALL_UP_TO = 40
_EACH_END = 15
_WIDE = 110


def ordered(rows: Sequence[Row], sort: str) -> tuple[list[Row], list[Row]]:
    """Put rows in order.

    Args:
        rows: Rows of a run as dictionaries.
        sort: One of ``SCALARS``, with a minus before it for falling values.

    Returns:
        The rows that have such a value, and those that have none or NaN; among equals, and among
        these, by name.
    """
    column = sort.removeprefix("-")
    by_name = sorted(rows, key=lambda row: row["neuron"])
    known = [row for row in by_name if _exists(row[column])]
    known.sort(key=lambda row: row[column], reverse=sort.startswith("-"))
    return known, [row for row in by_name if not _exists(row[column])]


def render_table(
    table: pa.Table,
    top: int | None = None,
    *,
    sort: str = "-score",
    width: int = 80,
    of: int | None = None,
) -> Group:
    """Lay out the neurons of a run in order, and a line that sums them up.

    Args:
        table: Rows of a run with at least the columns ``COLUMNS``.
        top: How many of either end, > 0; None for all of up to 40 neurons and else 15 of each.
        sort: One of ``SCALARS``, with a minus before it for falling values. Neurons without a
            value come last.
        width: Width of the terminal, in characters; from 110 on there are more columns.
        of: Neurons of the whole run, where the rows are some of them.

    Returns:
        Something that rich prints in any width from 80 columns on.
    """
    rows = table.select(list(COLUMNS)).to_pylist()
    known, unknown = ordered(rows, sort)
    columns = _shown(sort.removeprefix("-"), wide=width >= _WIDE)
    laid = bare_table()
    # Folded, not cut: a name is there to be copied.
    laid.add_column("neuron", overflow="fold")
    for column in columns:
        laid.add_column(column.title, justify=column.justify, no_wrap=True)
    count = len(rows) if top is None and len(rows) <= _ALL_UP_TO else top or _EACH_END
    for row in [*_ends(known, count), *_start(unknown, count)]:
        if isinstance(row, int):
            laid.add_row(Text(f"… {row:,} more", style="dim"))
        else:
            laid.add_row(Text(row["neuron"]), *(column.cell(row) for column in columns))
    return Group(laid, Text(), _summary(rows, len(rows) if of is None else of))


def _exists(value: Any) -> bool:
    """Tell a value from one that is missing or no number."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _ends(rows: Sequence[Row], count: int) -> list[Row | int]:
    """Take the first and the last rows, and between them the number of those left out."""
    if len(rows) <= 2 * count:
        return list(rows)
    return [*rows[:count], len(rows) - 2 * count, *rows[-count:]]


def _start(rows: Sequence[Row], count: int) -> list[Row | int]:
    """Take the first rows, and the number of those left out."""
    return [*rows[:count], len(rows) - count] if len(rows) > count else list(rows)


class _Column(NamedTuple):
    """A column of the table beside the neuron's name."""

    title: str
    shows: tuple[str, ...]
    """The columns of a run that it shows."""
    cell: Callable[[Row], Text]
    justify: Literal["left", "right"] = "right"
    is_wide: bool = False
    """Whether it is left out of a narrow table."""


def _numbers(title: str, name: str, form: str, style: str = "", is_wide: bool = False) -> _Column:
    """Make a column of numbers."""
    return _Column(
        title, (name,), lambda row: _number(row[name], form, style), "right", is_wide=is_wide
    )


def _words(title: str, name: str, is_wide: bool = False) -> _Column:
    """Make a column of texts; a text means itself, square brackets too."""
    return _Column(
        title,
        (name,),
        lambda row: Text(row[name], style=_STYLES.get(row[name], "")),
        "left",
        is_wide=is_wide,
    )


def _interval(row: Row) -> Text:
    """Lay out the interval of the score."""
    low, high = row["score_low"], row["score_high"]
    return Text("" if low is None or high is None else f"{low:.2f}-{high:.2f}", style="dim")


def _median_activation(row: Row) -> Text:
    """Lay out the activation of a typical image."""
    activation = row["activation"]
    return _number(statistics.median(activation) if activation else None, "{:.3g}")


def _shown(sorted_by: str, *, wide: bool) -> list[_Column]:
    """Choose the columns for a width; the one that is sorted by is always among them."""
    columns = [column for column in _COLUMNS if wide or not column.is_wide]
    if sorted_by == "neuron" or any(sorted_by in column.shows for column in columns):
        return columns
    found = [column for column in _COLUMNS if sorted_by in column.shows]
    is_text = pa.types.is_string(SCHEMA.field(sorted_by).type)
    other = _words(sorted_by, sorted_by) if is_text else _numbers(sorted_by, sorted_by, "{:.6g}")
    return [*columns, *(found or [other])]


def _number(value: float | None, form: str, style: str = "") -> Text:
    """Format a number, or a dash where there is none."""
    if value is None or math.isnan(value):
        return Text("-", style="dim")
    return Text(form.format(value), style=style)


def _summary(rows: Sequence[Row], of: int) -> Text:
    """Sum a run up in a line."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    part = f"{len(rows):,} of " if len(rows) < of else ""
    said = [f"{part}{of:,} neuron{'s' if of != 1 else ''}"]
    if scores:
        said.append(f"median score {statistics.median(scores):.3f}")
    said += [
        f"{count:,} {status}"
        for status in ("dead", "failed")
        if (count := sum(row["status"] == status for row in rows))
    ]
    return Text(", ".join(said))


_STYLES = {"ok": "green", "dead": "yellow", "failed": "red"}
_COLUMNS = (
    _numbers("score", "score", "{:.3f}", "bold"),
    _Column("95 %", ("score_low", "score_high"), _interval),
    _numbers("p", "p_value", "{:.3f}", is_wide=True),
    _numbers("q", "q_value", "{:.3f}", is_wide=True),
    _numbers("K", "k", "{}"),
    _numbers("K stab.", "k_stability", "{:.2f}", is_wide=True),
    _numbers("K_eff", "k_eff", "{:.2f}"),
    _numbers("paper", "score_paper", "{:.3f}"),
    _numbers("coverage", "coverage", "{:.2f}", is_wide=True),
    _numbers("images", "num_images", "{}"),
    _Column("activ.", ("activation",), _median_activation),
    _words("status", "status"),
    _words("reason", "stop_reason", is_wide=True),
)
