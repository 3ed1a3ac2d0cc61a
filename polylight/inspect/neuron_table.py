"""The table of a run's neurons, in any order and for any width of the terminal."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from polylight.inspect.terminal import bare_table, broken, printable, tokens
from polylight.photos.above import ABOVE_PHOTOS, above_photos, read_rankings
from polylight.photos.store import pair_paths
from polylight.run.reported import SCORE_TITLES, ReportedScore
from polylight.run.schema import SCHEMA, float_array

Row = Mapping[str, Any]

SCALARS = tuple(field.name for field in SCHEMA if not pa.types.is_list(field.type))
"""The columns of a run that hold one number or text a neuron."""

MEDIAN = "activation_median"
"""A column that is worked out on reading: the median activation of a neuron's valid images."""

SHOWN = (*SCALARS, MEDIAN)
"""The columns of ``show`` and of ``SELECT *``; no images, so any run fits in memory."""

_ALL_UP_TO = 40
_EACH_END = 15
# A title is broken only where its column is narrower still.
_TITLE = 5
_GAP = 2


def add_median(table: pa.Table) -> pa.Table:
    """Work out the median activation of every neuron's valid images.

    Args:
        table: Rows of a run, with at least the columns ``activation`` and ``label``.

    Returns:
        The table with the column ``activation_median``: float64 in the layer's own units, null
        where no image is valid.
    """
    rows = table.select(["activation", "label"]).to_pylist()
    medians = np.array([_median(row["activation"], row["label"]) for row in rows], np.float64)
    return table.append_column(MEDIAN, float_array(medians))


def shown_columns(run: str | Path) -> tuple[str, ...]:
    """List the columns of ``show`` and of ``SELECT *`` for a run: one more where it has photos."""
    return (*SHOWN, ABOVE_PHOTOS) if pair_paths(run) else SHOWN


def add_above_photos(table: pa.Table, run: str | Path) -> pa.Table:
    """Work out which share of every neuron's valid images drives it more than any photo.

    Args:
        table: Rows of a run, with at least the columns ``neuron``, ``activation`` and ``label``.
        run: The run's directory.

    Returns:
        The table with the column ``above_photos``: float64, null where there is no photo.
    """
    rankings = read_rankings(run)
    rows = table.select(["neuron", "activation", "label"]).to_pylist()
    shares = [
        above_photos(_valid(row["activation"], row["label"]), rankings.get(row["neuron"]))
        for row in rows
    ]
    return table.append_column(ABOVE_PHOTOS, float_array(np.array(shares, np.float64)))


def ordered(rows: Sequence[Row], sort: str) -> tuple[list[Row], list[Row]]:
    """Put rows in order.

    Args:
        rows: Rows of a run as dictionaries.
        sort: One of ``SHOWN``, with a minus before it for falling values.

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
    score: ReportedScore = "score",
    width: int = 80,
    of: int | None = None,
) -> Group:
    """Lay out the neurons of a run in order, and a line that sums them up.

    Args:
        table: Rows of a run with at least the columns ``SHOWN``, and ``above_photos`` where it has
            photos.
        top: How many of either end, > 0; None for all of up to 40 neurons and else 15 of each.
        sort: One of ``SHOWN``, with a minus before it for falling values. Neurons without a
            value come last.
        score: The one that comes first and is summed up.
        width: Width of the terminal, in characters. The more there is, the more columns; a name
            is broken into lines between its parts.
        of: Neurons of the whole run, where the rows are some of them.

    Returns:
        Something that rich prints in that width, from 40 characters on.
    """
    shown = [name for name in (*SHOWN, ABOVE_PHOTOS) if name in table.column_names]
    rows = table.select(shown).to_pylist()
    known, unknown = ordered(rows, sort)
    count = len(rows) if top is None and len(rows) <= _ALL_UP_TO else top or _EACH_END
    lines = [*_ends(known, count), *_start(unknown, count)]
    names = [printable(row["neuron"]) for row in lines if not isinstance(row, int)]
    longest = max(map(cell_len, names), default=0)
    token = max((cell_len(token) for name in names for token in tokens(name)), default=0)
    # A third of the terminal has room for most names, and for a token of most others.
    reserved = max(cell_len("neuron"), min(longest, max(width // 3, min(token, width // 2))))
    columns = _fitting(_candidates(sort.removeprefix("-"), score, lines), width - reserved)
    room = width - sum(column.width + _GAP for column in columns)
    laid = bare_table()
    laid.add_column("neuron", no_wrap=True)
    for column in columns:
        laid.add_column(column.title, justify=column.justify, no_wrap=True)
    for i, row in enumerate(lines):
        if isinstance(row, int):
            laid.add_row(Text(f"… {row:,} more", style="dim"))
        else:
            # Broken, not cut: a name is there to be copied.
            name = "\n".join(broken(printable(row["neuron"]), max(room, 1)))
            laid.add_row(Text(name), *(column.cells[i] for column in columns))
    return Group(laid, Text(), _summary(rows, score, len(rows) if of is None else of))


def _exists(value: Any) -> bool:
    """Tell a value from one that is missing or no number."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _median(activation: Sequence[float], label: Sequence[int]) -> float:
    """The median activation of the images that are valid; NaN without any."""
    valid = _valid(activation, label)
    return float(np.median(valid)) if len(valid) else math.nan


def _valid(activation: Sequence[float], label: Sequence[int]) -> npt.NDArray[np.float64]:
    """The activations of the images that are valid."""
    return np.array(activation, dtype=np.float64)[np.array(label, dtype=np.int64) >= 0]


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
    """Names of columns of a run, where it has one; it may be broken behind ``_``."""
    shows: tuple[str, ...]
    """The columns of a run that it shows."""
    rank: int
    """Columns of low rank come first where there is not room for all."""
    cell: Callable[[Row], Text]
    justify: Literal["left", "right"] = "right"


class _LaidColumn(NamedTuple):
    """A column with its cells, as wide as it will be."""

    title: str
    cells: list[Text]
    width: int
    rank: int
    justify: Literal["left", "right"]


def _numbers(name: str, rank: int, form: str, style: str = "") -> _Column:
    """Make a column of numbers."""
    return _Column(name, (name,), rank, lambda row: _number(row[name], form, style))


def _words(name: str, rank: int) -> _Column:
    """Make a column of texts; a text means itself, square brackets too."""
    return _Column(name, (name,), rank, lambda row: _word(row[name]), "left")


def _word(value: str) -> Text:
    """Lay out a text."""
    return Text(printable(value), style=_STYLES.get(value, ""))


def _interval(row: Row) -> Text:
    """Lay out the interval of the score."""
    low, high = row["score_low"], row["score_high"]
    return Text("" if low is None or high is None else f"{low:.2f}-{high:.2f}", style="dim")


def _candidates(
    sorted_by: str, score: ReportedScore, lines: Sequence[Row | int]
) -> list[_LaidColumn]:
    """Lay out every column there is; that which is sorted by comes before all others in rank."""
    has_photos = any(ABOVE_PHOTOS in row for row in lines if not isinstance(row, int))
    columns = [c for c in _COLUMNS if has_photos or c.title != ABOVE_PHOTOS]
    if score != "score":
        # It stands first, under its full name; the other keeps its interval.
        columns = [column for column in columns if column.shows != (score,)]
        columns[0] = _numbers("score", 5, "{:.3f}")
        columns.insert(0, _numbers(score, 0, "{:.3f}", "bold")._replace(title=SCORE_TITLES[score]))
    if sorted_by != "neuron" and not any(sorted_by in column.shows for column in columns):
        is_text = pa.types.is_string(SCHEMA.field(sorted_by).type)
        columns.append(_words(sorted_by, 0) if is_text else _numbers(sorted_by, 0, "{:.6g}"))
    return [
        _laid(column, lines, 0 if sorted_by in column.shows else column.rank) for column in columns
    ]


def _laid(column: _Column, lines: Sequence[Row | int], rank: int) -> _LaidColumn:
    """Fill in a column, and break its title to the width of its cells."""
    cells = [Text() if isinstance(row, int) else column.cell(row) for row in lines]
    widest = max((cell.cell_len for cell in cells), default=0)
    room = max(widest, _TITLE, *(len(token.rstrip()) for token in tokens(column.title, "_ ")))
    title = broken(column.title, room, ["_ "])
    width = max(widest, *map(len, title))
    return _LaidColumn("\n".join(title), cells, width, rank, column.justify)


def _fitting(columns: Sequence[_LaidColumn], room: int) -> list[_LaidColumn]:
    """Choose the columns that there is room for, in their order; those of rank 0 are needed."""
    chosen = set()
    for i, column in sorted(enumerate(columns), key=lambda item: item[1].rank):
        if column.rank == 0 or column.width + _GAP <= room:
            chosen.add(i)
            room -= column.width + _GAP
    return [column for i, column in enumerate(columns) if i in chosen]


def _number(value: float | None, form: str, style: str = "") -> Text:
    """Format a number, or a dash where there is none."""
    if value is None or math.isnan(value):
        return Text("-", style="dim")
    return Text(form.format(value), style=style)


def _summary(rows: Sequence[Row], score: ReportedScore, of: int) -> Text:
    """Sum a run up in a line."""
    scores = [row[score] for row in rows if row[score] is not None]
    part = f"{len(rows):,} of " if len(rows) < of else ""
    said = [f"{part}{of:,} neuron{'s' if of != 1 else ''}"]
    if scores:
        said.append(f"median {SCORE_TITLES[score]} {statistics.median(scores):.3f}")
    said += [
        f"{count:,} {status}"
        for status in ("dead", "failed")
        if (count := sum(row["status"] == status for row in rows))
    ]
    return Text(", ".join(said))


_STYLES = {"ok": "green", "dead": "yellow", "failed": "red"}
_COLUMNS = (
    _numbers("score", 0, "{:.3f}", "bold"),
    _Column("score_low-high", ("score_low", "score_high"), 3, _interval),
    _numbers("p_value", 10, "{:.3f}"),
    _numbers("q_value", 8, "{:.3f}"),
    _numbers("k", 2, "{}"),
    _numbers("k_stability", 11, "{:.2f}"),
    _numbers("k_eff", 7, "{:.2f}"),
    _numbers("score_paper", 5, "{:.3f}"),
    _numbers("coverage", 9, "{:.2f}"),
    _numbers("num_images", 4, "{}"),
    _numbers(MEDIAN, 6, "{:.3g}"),
    _numbers(ABOVE_PHOTOS, 5, "{:.2f}"),
    _words("status", 1),
    _words("stop_reason", 12),
)
