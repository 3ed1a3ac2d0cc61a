"""The report on paper: a summary of a run, and its most telling neurons, as one PDF file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from weasyprint import CSS, HTML
from weasyprint.urls import FatalURLFetchingError, URLFetcher, URLFetcherResponse

from polylight.errors import InputError, nearest
from polylight.report import charts, words
from polylight.report.content import Cluster, NeuronDetail, NeuronSummary, Run
from polylight.report.explanation import explain
from polylight.report.gather import read_details
from polylight.report.rasters import colour, cut, heat_map, image_map, to_jpeg
from polylight.run.atomic import write_atomically

EACH_END = 10
"""How many neurons of highest and of lowest score are shown unless others are asked for."""

_STYLE = Path(__file__).parent / "templates" / "pdf.css"
_INK = "#3c434a"
# Millimetres. Captions under tiles of less than the smallest side could not be read.
_ROOM, _GAP, _LABEL, _CAPTION, _BELOW = 174.0, 1.2, 5.0, 3.2, 2.0
_LARGEST, _SMALLEST, _HALF_PAGE, _WHOLE_PAGE = 17.0, 8.0, 56.0, 165.0


@dataclass(frozen=True)
class Section:
    """A heading, and the neurons below it."""

    title: str
    positions: Sequence[int]
    """Of its neurons in ``Run.neurons``."""


@dataclass(frozen=True)
class Block:
    """Where the images of a cluster are; in millimetres from the left and the top of the grid."""

    left: float
    top: float
    width: float
    shown: int
    """How many of its images have a place."""


@dataclass(frozen=True)
class Grid:
    """How the images of a neuron are laid out, in millimetres."""

    columns: int
    side: float
    """Of a tile."""
    height: float
    blocks: Sequence[Block]
    """One for each cluster."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A neuron as the template needs it; pictures are addresses."""

    summary: NeuronSummary
    explained: Sequence[str]
    clusters: Sequence[Cluster]
    grid: Grid
    tiles: Mapping[int, str]
    """Address by the picture's place on the sheet."""
    matrix: str | None
    places: str | None
    bic: str | None
    bic_text: str
    """What it shows, for those who cannot see it."""


class Pictures(URLFetcher):  # type: ignore[misc]
    """All that the document may load: pictures in memory, and nothing from anywhere else."""

    def __init__(self) -> None:
        super().__init__(allowed_protocols=())
        self._files: dict[str, tuple[bytes, str]] = {}

    def add(self, content: bytes, kind: str) -> str:
        """Keep a file of a media type; return its address."""
        address = f"memory:{len(self._files)}"
        self._files[address] = content, kind
        return address

    def chart(self, spec: charts.Spec) -> tuple[str, str]:
        """Draw a chart; return its address and what it shows."""
        return self.add(charts.to_svg(spec).encode(), "image/svg+xml"), spec["description"]

    def fetch(self, url: str, headers: Any = None) -> URLFetcherResponse:
        """Answer the renderer; any other address ends it."""
        if url not in self._files:
            raise FatalURLFetchingError(f"a report loads nothing, but {url} was asked for")
        content, kind = self._files[url]
        return URLFetcherResponse(url, content, {"Content-Type": kind})


def write_pdf(run: Run, path: str | Path, neurons: Sequence[str] | None = None) -> None:
    """Write a summary of a run and some of its neurons, each with its images, as PDF.

    The file has bookmarks and is tagged for screen readers (PDF/UA-1). It is made from what the
    run's directory holds; nothing is loaded from anywhere else.

    Args:
        run: The run.
        path: The file; its directory must exist. Replaced, whole or not at all, if it is there.
        neurons: The neurons to show, as text; they come layer by layer. None for the ``EACH_END``
            of highest and the ``EACH_END`` of lowest score.

    Raises:
        InputError: If a neuron that is asked for is not in the run, or cannot be read any more.
        OSError: If the file cannot be written.
    """
    sections = extremes(run) if neurons is None else chosen(run, neurons)
    wanted = [position for section in sections for position in section.positions]
    pictures = Pictures()
    entries = {
        summary.position: _entry(summary, detail, pictures)
        for summary, detail in read_details(run, wanted)
    }
    overview, overview_text = pictures.chart(charts.score_by_layer(run, width=560, ink=_INK))
    html = (
        _environment()
        .get_template("pdf.html")
        .render(
            run=run,
            sections=sections,
            entries=entries,
            sides={entry.grid.columns: entry.grid.side for entry in entries.values()},
            overview=overview,
            overview_text=overview_text,
            colour=colour,
            words=words,
            made=_made(run),
        )
    )
    document = HTML(string=html, url_fetcher=pictures)
    style = CSS(string=_STYLE.read_text(), url_fetcher=pictures)
    pdf = document.write_pdf(stylesheets=[style], pdf_variant="pdf/ua-1")
    write_atomically(Path(path), lambda file: file.write(pdf))


def extremes(run: Run) -> list[Section]:
    """Choose the neurons of highest and of lowest score.

    Args:
        run: The run.

    Returns:
        Two sections; one with all neurons that have a score, the highest first, where they are no
        more than ``2 * EACH_END``; none where none has.
    """
    scored = [
        (-neuron.values["score"], neuron.name, neuron.position)
        for neuron in run.neurons
        if neuron.values["score"] is not None
    ]
    ranked = [position for _, _, position in sorted(scored)]
    if not ranked:
        return []
    if len(ranked) <= 2 * EACH_END:
        return [Section("From most to least polysemantic", ranked)]
    return [
        Section("Most polysemantic", ranked[:EACH_END]),
        Section("Least polysemantic", ranked[: -EACH_END - 1 : -1]),
    ]


def chosen(run: Run, neurons: Sequence[str]) -> list[Section]:
    """Find neurons by their text.

    Args:
        run: The run.
        neurons: Neurons as text; spaces do not count, nor does one that is there twice.

    Returns:
        A section for each layer that has any, in the order of the run.

    Raises:
        InputError: If none is given, or the run has no such neuron.
    """
    if not neurons:
        raise InputError("no neuron is given; name at least one, or leave the choice out")
    positions = {"".join(neuron.name.split()): neuron.position for neuron in run.neurons}
    for text in neurons:
        if "".join(text.split()) not in positions:
            close = nearest(text, (neuron.name for neuron in run.neurons))
            raise InputError(f"neuron {text!r} is not in {run.path}; {close}")
    sections: dict[str, list[int]] = {}
    for position in sorted({positions["".join(text.split())] for text in neurons}):
        sections.setdefault(run.neurons[position].layer, []).append(position)
    return [Section(layer, found) for layer, found in sections.items()]


def lay_out(sizes: Sequence[int]) -> Grid:
    """Find the largest tiles with which a neuron fits on half a page, or else on a whole one.

    Args:
        sizes: How many images each cluster has.

    Returns:
        The grid. Where even the smallest tiles would need more than a page, the largest clusters
        are cut to as many full rows as leave room for all.
    """
    fewest, most = (int((_ROOM + _GAP) / (side + _GAP)) for side in (_LARGEST, _SMALLEST))
    for room, widest in ((_HALF_PAGE, fewest + 2), (_WHOLE_PAGE, most)):
        for columns in range(fewest, widest + 1):
            grid = _grid(sizes, columns)
            if grid.height <= room:
                return grid
    rows = max(math.ceil(size / most) for size in sizes)
    while rows > 1 and grid.height > _WHOLE_PAGE:
        rows -= 1
        grid = _grid([min(size, rows * most) for size in sizes], most)
    return grid


def _environment() -> Environment:
    """Set the templates up: nothing of a run is markup, and nothing may be undefined."""
    return Environment(
        loader=PackageLoader("polylight.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _entry(summary: NeuronSummary, detail: NeuronDetail, pictures: Pictures) -> Entry:
    """Lay a neuron out, and keep its pictures."""
    sizes = [len(cluster.pictures) for cluster in detail.clusters]
    matrix = bic = None
    bic_text = ""
    if len(detail.similarity) > 1:
        matrix = pictures.add(heat_map(detail.similarity, sizes), "image/png")
    if detail.bic:
        spec = charts.bic_curve(detail.bic, summary.values["k"], width=140, ink=_INK)
        bic, bic_text = pictures.chart({**spec, "height": 100})
    files = cut(detail)
    tiles = {
        picture.tile: pictures.add(to_jpeg(file), "image/jpeg")
        for picture, file in zip(detail.pictures, files, strict=True)
    }
    places = pictures.add(image_map(detail, files), "image/jpeg") if len(files) > 1 else None
    return Entry(
        summary,
        explain(summary, detail),
        detail.clusters,
        lay_out(sizes),
        tiles,
        matrix,
        places,
        bic,
        bic_text,
    )


def _made(run: Run) -> dict[str, str]:
    """List all that made a run."""
    if run.manifest is None:
        return {}
    return {**words.listed(run.manifest), **run.manifest.versions}


def _grid(sizes: Sequence[int], columns: int) -> Grid:
    """Set clusters side by side as long as they fit, each with its tiles below a label."""
    side = (_ROOM + _GAP) / columns - _GAP
    blocks, free, top, deepest = [], columns, 0.0, 0.0
    for size in sizes:
        if size > free:
            top, free, deepest = top + deepest, columns, 0.0
        across = min(size, columns)
        left = (columns - free) * (side + _GAP)
        blocks.append(Block(left, top, across * (side + _GAP) - _GAP, size))
        rows = math.ceil(size / columns)
        deepest = max(deepest, _LABEL + rows * (side + _CAPTION) + _BELOW)
        free -= across
    return Grid(columns, side, top + deepest, blocks)
