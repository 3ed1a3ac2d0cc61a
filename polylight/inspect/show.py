"""A run in the terminal: its neurons from the most polysemantic to the least."""

import dataclasses
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from polylight.errors import InputError, nearest
from polylight.inspect.export import check_format, to_csv, to_json, write_out
from polylight.inspect.neuron_table import ordered, render_table, shown_columns
from polylight.inspect.query import matching, read_finished
from polylight.inspect.terminal import printable
from polylight.run.manifest import Manifest, read_manifest
from polylight.run.reported import read_reported_score
from polylight.run.store import NEURONS_DIR

_RANK = re.compile(r"manifest-(\d{5})\.json")


def show(
    run: str,
    top: int | None = None,
    where: str | None = None,
    sort: str | None = None,
    json: bool = False,
    csv: bool = False,
) -> None:
    """Print the neurons of a run, most polysemantic first, and what to open next.

    The columns are those of the run's rows, with ``activation_median``, the median activation of a
    neuron's valid images, and after ``fit`` with ``--data.photos`` with ``above_photos``, the share
    of these images that drive it more than any photo. The terminal shows as many as it has room
    for, JSON and CSV all.

    Args:
        run: The run's directory.
        top: How many from either end of the order to print, > 0. Unless given, a run of up to 40
            neurons is printed whole, of others 15 of either end.
        where: Only the neurons for which this SQL expression holds, such as
            ``score > 0.3 and layer = 'blocks.4'``; it needs duckdb.
        sort: The column to sort by, from low to high; with a minus before it from high to low.
            Unless given, the score that the run reports, from high to low.
        json: Print JSON instead of a table: a list of objects.
        csv: Print CSV instead of a table (RFC 4180).

    Raises:
        InputError: If the directory is no run or holds no finished neuron, or an option cannot be
            used.
    """
    check_format(as_json=json, as_csv=csv)
    if top is not None and (json or csv):
        raise InputError("--top is for the table; --json and --csv print every neuron")
    if top is not None and top < 1:
        raise InputError(f"--top must be at least 1, but is {top}")
    score = read_reported_score(run)
    sort = f"-{score}" if sort is None else sort
    column, columns = sort.removeprefix("-"), shown_columns(run)
    if column not in columns:
        close = nearest(column, columns)
        raise InputError(f"--sort: a run has no such column {column!r}; {close}")
    table = read_finished(run, columns)
    of = table.num_rows
    if where is not None:
        table = table.filter(matching(table, where))
    if json or csv:
        known, unknown = ordered(table.to_pylist(), sort)
        write = to_json if json else to_csv
        write_out(write(columns, [list(row.values()) for row in [*known, *unknown]]))
        return
    console = Console()
    notes = [note for note in (render_progress(run, of), render_cost(run)) if note]
    console.print(render_table(table, top, sort=sort, score=score, width=console.width, of=of))
    console.print(*notes, Text(), sep="\n")
    # A path that is cut or broken over lines cannot be copied.
    console.print(render_paths(run), soft_wrap=True)


def render_progress(run: str | Path, finished: int) -> Text:
    """Say how far a run is that is not complete.

    Args:
        run: The run's directory.
        finished: Neurons whose rows are there.

    Returns:
        A line; empty of a run without a manifest, or of which every neuron is there.

    Raises:
        InputError: If a manifest cannot be understood.
    """
    manifests = _read_manifests(run)
    total = sum(manifest.neurons["total"] for manifest in manifests)
    if finished >= total:
        return Text()
    states = " and ".join(sorted({manifest.status for manifest in manifests} - {"finished"}))
    said = f"not complete: {finished:,} of {total:,} neurons" + (f", {states}" if states else "")
    return Text(said, style="yellow")


def render_cost(run: str | Path) -> Text:
    """Say in a line how fast a run was and where its time went, over all its ranks.

    Args:
        run: The run's directory.

    Returns:
        Image-steps a second, the occupancy and the two largest stages, as far as there are any.

    Raises:
        InputError: If a manifest cannot be understood.
    """
    manifests = _read_manifests(run)
    if not manifests:
        return Text()
    speed = sum(manifest.image_steps_per_second for manifest in manifests)
    stages = [stage for manifest in manifests for stage in manifest.seconds]
    whole = dataclasses.replace(
        manifests[0],
        image_steps=sum(manifest.image_steps for manifest in manifests),
        slot_steps=sum(manifest.slot_steps for manifest in manifests),
        seconds={s: sum(m.seconds.get(s, 0.0) for m in manifests) for s in stages},
    )
    said = []
    if speed:
        said.append(f"{speed:,.0f} image-steps/s" if speed >= 10 else f"{speed:.2g} image-steps/s")
    if whole.slot_steps:
        said.append(f"occupancy {100 * whole.occupancy:.0f} %")
    largest = sorted(whole.shares.items(), key=lambda stage: -stage[1])[:2]
    if largest:
        said.append("time: " + ", ".join(f"{stage} {100 * s:.0f} %" for stage, s in largest))
    return Text(", ".join(said), style="dim")


def render_paths(run: str | Path) -> Text:
    """List what a run left behind that can be opened next.

    Args:
        run: The run's directory.

    Returns:
        A line for each thing that exists.
    """
    run = Path(run)
    offers = [
        (run / NEURONS_DIR, "rows and images", f"{run}/{NEURONS_DIR}/*.parquet"),
        (run / "neurons.png", "contact sheet", f"{run}/neurons.png"),
        (run / "images", "images", f"{run}/images/"),
        (run / "report" / "index.html", "report", f"{run}/report/index.html"),
        (run / "tensorboard", "TensorBoard", f"tensorboard --logdir {run}/tensorboard"),
    ]
    there = [(what, how) for path, what, how in offers if path.exists()]
    return Text("\n".join(f"{what:<16} {printable(how)}" for what, how in there))


def _read_manifests(run: str | Path) -> list[Manifest]:
    """Read the manifests of all ranks, as many as there are."""
    others = [int(m[1]) for path in Path(run).iterdir() if (m := _RANK.fullmatch(path.name))]
    return [found for rank in (0, *others) if (found := read_manifest(run, rank))]
