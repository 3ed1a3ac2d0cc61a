"""A run in the terminal: its neurons from the most polysemantic to the least."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from polylight.errors import InputError
from polylight.store import NEURONS, read_run

COLUMNS = (
    "neuron",
    "status",
    "score",
    "score_low",
    "score_high",
    "k",
    "k_eff",
    "score_paper",
    "num_images",
    "activation",
)
"""The columns of a run that ``render_table`` needs; no pictures, so any run fits in memory."""

_ALL_UP_TO = 40
_EACH_END = 15


def show(run: str, top: int | None = None) -> None:
    """Print the neurons of a run, most polysemantic first, and what to open next.

    Args:
        run: The run's directory.
        top: How many of the most and how many of the least polysemantic neurons to print, > 0.
            Unless given, a run of up to 40 neurons is printed whole, of others 15 of either end.

    Raises:
        InputError: If the directory is no run or holds no finished neuron, or ``top`` is below 1.
    """
    if top is not None and top < 1:
        raise InputError(f"--top must be at least 1, but is {top}")
    table = read_run(run, columns=COLUMNS)
    if not table.num_rows:
        found = (Path(run) / NEURONS).is_dir()
        raise InputError(
            f"{run} holds no finished neuron yet; wait for the first or look at its log"
            if found
            else f"{run} is not the directory of a run: expected {NEURONS}/part-*.parquet in it"
        )
    console = Console()
    console.print(render_table(table, top), Text(), sep="\n")
    # A path that is cut or broken over lines cannot be copied.
    console.print(render_paths(run), soft_wrap=True)


def render_table(table: pa.Table, top: int | None = None) -> Group:
    """Lay out the neurons of a run by falling score, and a line that sums them up.

    Args:
        table: Rows of a run with at least the columns ``COLUMNS``.
        top: How many of either end, > 0; None for all of up to 40 neurons and else 15 of each.

    Returns:
        Something that rich prints in any width from 80 columns on.
    """
    rows = table.select(list(COLUMNS)).to_pylist()
    scored = sorted(
        (row for row in rows if row["score"] is not None),
        key=lambda row: (-row["score"], row["neuron"]),
    )
    unscored = [row for row in rows if row["score"] is None]
    laid = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # Folded, not cut: a name is there to be copied.
    laid.add_column("neuron", overflow="fold")
    for title in ("score", "95 %", "K", "K_eff", "paper", "images", "activ."):
        laid.add_column(title, justify="right", no_wrap=True)
    laid.add_column("status", no_wrap=True)
    count = len(rows) if top is None and len(rows) <= _ALL_UP_TO else top or _EACH_END
    for row in _ends(scored, count):
        laid.add_row(*(_left_out(row) if isinstance(row, int) else _cells(row)))
    for row in unscored[:count]:
        laid.add_row(*_cells(row))
    if len(unscored) > count:
        laid.add_row(*_left_out(len(unscored) - count))
    return Group(laid, Text(), _summary(rows))


def render_paths(run: str | Path) -> Text:
    """List what a run left behind that can be opened next.

    Args:
        run: The run's directory.

    Returns:
        A line for each thing that exists.
    """
    run = Path(run)
    offers = [
        (run / NEURONS, "rows and images", f"{run}/{NEURONS}/*.parquet"),
        (run / "neurons.png", "contact sheet", f"{run}/neurons.png"),
        (run / "images", "images", f"{run}/images/"),
        (run / "report" / "index.html", "report", f"{run}/report/index.html"),
        (run / "tensorboard", "TensorBoard", f"tensorboard --logdir {run}/tensorboard"),
    ]
    there = [(what, how) for path, what, how in offers if path.exists()]
    return Text("\n".join(f"{what:<16} {how}" for what, how in there))


def _ends(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any] | int]:
    """Take the first and the last rows, and between them the number of those left out."""
    if len(rows) <= 2 * count:
        return list(rows)
    return [*rows[:count], len(rows) - 2 * count, *rows[-count:]]


def _left_out(count: int) -> list[Text]:
    """Lay out the line that stands for rows that are not printed."""
    return [Text(f"… {count:,} more", style="dim")]


def _cells(row: Mapping[str, Any]) -> list[Text]:
    """Lay out one neuron; names are text, in which square brackets mean nothing."""
    low, high = row["score_low"], row["score_high"]
    activation = row["activation"]
    status = row["status"]
    return [
        Text(row["neuron"]),
        _number(row["score"], "{:.3f}", "bold"),
        Text("" if low is None or high is None else f"{low:.2f}-{high:.2f}", style="dim"),
        _number(row["k"], "{}"),
        _number(row["k_eff"], "{:.2f}"),
        _number(row["score_paper"], "{:.3f}"),
        _number(row["num_images"], "{}"),
        _number(statistics.median(activation) if activation else None, "{:.3g}"),
        Text(status, style={"ok": "green", "dead": "yellow", "failed": "red"}.get(status, "")),
    ]


def _number(value: float | None, form: str, style: str = "") -> Text:
    """Format a number, or a dash where there is none."""
    if value is None or math.isnan(value):
        return Text("-", style="dim")
    return Text(form.format(value), style=style)


def _summary(rows: Sequence[Mapping[str, Any]]) -> Text:
    """Sum a run up in a line."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    said = [f"{len(rows):,} neuron{'s' if len(rows) != 1 else ''}"]
    if scores:
        said.append(f"median score {statistics.median(scores):.3f}")
    said += [
        f"{count:,} {status}"
        for status in ("dead", "failed")
        if (count := sum(row["status"] == status for row in rows))
    ]
    return Text(", ".join(said))
