"""The report as a folder of static pages, which need neither a server nor a network."""

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from polylight.inspect.neuron_table import ordered
from polylight.photos.above import ABOVE_PHOTOS
from polylight.report import charts, explanation, rasters, words
from polylight.report.content import (
    LayerSummary,
    NeuronDetail,
    NeuronSummary,
    Run,
    Unreadable,
)
from polylight.report.gather import read_details
from polylight.report.photos import noting, sentence, shown_photos, write_photos
from polylight.report.table import Layout, write_table

GENERATOR = f"polylight {version('polylight')}"
"""What pages name as their maker, by which a folder is known to be a report."""

MOST_CARDS = 6
"""How many of the most polysemantic neurons the page of a run shows first."""

_ASSETS = Path(__file__).parent / "assets"
# Pixels of a cosine, which the page enlarges; a gap is a third of it.
_CELL = 3
# Neurons whose charts are drawn while others' pages are written.
_AHEAD = 3
# Pixels of charts that fill a page, on a screen and on a phone.
_WIDE, _NARROW = 960, 330


@dataclass(frozen=True)
class Drawing:
    """A chart as a page holds it."""

    description: str
    svg: Markup
    narrow: Markup | None = None
    """The same for a narrow window, where there is another."""


def draw(spec: charts.Spec) -> Drawing:
    """Draw a chart that fits any window."""
    # The description says for all of it what it shows.
    svg = charts.to_svg(spec).replace("<svg ", '<svg aria-hidden="true" ', 1)
    return Drawing(spec["description"], Markup(svg))


def both_widths(make: Callable[..., charts.Spec], *arguments: Any) -> Drawing:
    """Draw a chart that fills a page, for wide windows and for narrow ones."""
    wide, narrow = (make(*arguments, width=width) for width in (_WIDE, _NARROW))
    return replace(draw(wide), narrow=draw(narrow).svg)


def write_site(
    run: Run,
    folder: Path,
    *,
    details: Iterable[tuple[NeuronSummary, NeuronDetail]] | None = None,
    has_pdf: bool = False,
    home: str | None = None,
) -> Run:
    """Write the pages of a run: its own, one a layer and one a neuron.

    One neuron's images are in memory at a time.

    Args:
        run: The run.
        folder: Where to write; it exists and is empty.
        details: Every neuron's images and what belongs to them, in any order; None to read them
            from the run.
        has_pdf: Whether a ``report.pdf`` lies beside ``index.html``.
        home: Address of a page above this site, as seen from ``folder``, or None.

    Returns:
        The run, with the images that are damaged among what is unreadable.

    Raises:
        InputError: If a part of the run cannot be read any more.
        OSError: If something cannot be written.
    """
    pages = environment()
    pages.globals.update(
        run=run,
        words=explanation.glossary(run),
        has_pdf=has_pdf,
        home=home,
        site=_site_key(run),
    )
    for name in ("layers", "neurons", "images", "thumbs"):
        (folder / name).mkdir()
    write_assets(folder)
    wanted: set[int] = set()
    found = noting(read_details(run) if details is None else details, wanted)
    layouts, damaged = _write_neurons(run, folder, pages, found)
    if run.photos is not None:
        (folder / "photos").mkdir()
        damaged += write_photos(run.photos, folder / "photos", wanted)
    run = replace(run, unreadable=[*run.unreadable, *damaged])
    write_table(run, folder / "assets" / "neurons.js", layouts)
    _write_layers(run, folder, pages)
    _write(folder / "index.html", pages, "index.html", root="", **_index(run, layouts))
    return run


def environment() -> Environment:
    """Make what turns templates into pages; every value is escaped."""
    pages = Environment(
        loader=PackageLoader("polylight.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        auto_reload=False,
    )
    pages.globals.update(
        generator=GENERATOR,
        draw=draw,
        number=words.number,
        shown=words.shown,
        score=words.score,
        interval=words.interval,
        percent=words.percent,
        counted=words.counted,
        typical=words.typical,
        colour=_colour,
        said_of_photos=sentence,
        shown_photos=shown_photos,
        place_on_sheet=_place_on_sheet,
        picture_text=words.picture,
    )
    return pages


def write_assets(folder: Path) -> None:
    """Write scripts and styles, which all pages of a folder share.

    Args:
        folder: The site's folder, which exists.
    """
    assets = folder / "assets"
    assets.mkdir()
    for path in _ASSETS.iterdir():
        if path.suffix == ".js":
            (assets / path.name).write_bytes(path.read_bytes())
    colours = "".join(f"--cluster-{i}:{c};" for i, c in enumerate(charts.PALETTE, start=1))
    style = (_ASSETS / "style.css").read_text(encoding="utf-8")
    (assets / "style.css").write_text(f":root{{{colours}}}\n{style}", encoding="utf-8")


def _write_neurons(
    run: Run,
    folder: Path,
    pages: Environment,
    details: Iterable[tuple[NeuronSummary, NeuronDetail]],
) -> tuple[dict[int, Layout], list[Unreadable]]:
    """Write a page a neuron; return how many medoids each thumbnail shows, and damaged images."""
    order = _in_table_order(run)
    place = {position: i for i, position in enumerate(order)}
    layers = {layer.name: layer for layer in run.layers}
    manifest = run.manifest
    settings = words.listed(manifest) if manifest else {}
    selection = settings.get("scoring.selection", "bic")
    layouts: dict[int, Layout] = {}
    damaged: list[Unreadable] = []
    for neuron, detail, bic in _with_curves(details):
        at = place[neuron.position]
        if detail.sheet:
            (folder / "images" / f"{neuron.slug}.jpg").write_bytes(detail.sheet)
        if detail.thumb:
            (folder / "thumbs" / f"{neuron.slug}.jpg").write_bytes(detail.thumb)
        layouts[neuron.position] = Layout.of(detail)
        damaged += detail.unreadable
        _write(
            folder / "neurons" / f"{neuron.slug}.html",
            pages,
            "neuron.html",
            root="../",
            neuron=neuron,
            detail=detail,
            layer=layers.get(neuron.layer),
            before=run.neurons[order[at - 1]] if at else None,
            after=run.neurons[order[at + 1]] if at + 1 < len(order) else None,
            explained=[*explanation.explain(neuron, detail), *_crossed(detail)],
            numbers=_numbers(neuron),
            similarity=_similarity(detail),
            bic=bic,
            why_k=explanation.why_k(neuron, detail, selection),
            similar=[(run.neurons[other.position], other.cosine) for other in neuron.similar],
            command=words.reproduction(run, neuron),
            made=words.making(neuron),
            settings=settings,
        )
    return layouts, damaged


def _with_curves(
    details: Iterable[tuple[NeuronSummary, NeuronDetail]],
) -> Iterator[tuple[NeuronSummary, NeuronDetail, Drawing | None]]:
    """Draw the BIC of each neuron while the page before it is written."""
    ahead: deque[tuple[NeuronSummary, NeuronDetail, Future[Drawing] | None]] = deque()
    with ThreadPoolExecutor(1, "polylight-charts") as thread:
        for neuron, detail in details:
            curve = charts.bic_curve(detail.bic, neuron.values["k"]) if detail.bic else None
            ahead.append((neuron, detail, thread.submit(draw, curve) if curve else None))
            if len(ahead) == _AHEAD:
                yield _drawn(*ahead.popleft())
        while ahead:
            yield _drawn(*ahead.popleft())


def _drawn(
    neuron: NeuronSummary, detail: NeuronDetail, curve: Future[Drawing] | None
) -> tuple[NeuronSummary, NeuronDetail, Drawing | None]:
    return neuron, detail, curve.result() if curve else None


def _crossed(detail: NeuronDetail) -> list[str]:
    """Say which images are not shown."""
    return [f"A crossed tile stands for what is damaged: {d.reason}." for d in detail.unreadable]


def _write_layers(run: Run, folder: Path, pages: Environment) -> None:
    """Write a page a layer."""
    for i, layer in enumerate(run.layers):
        neurons = _of_layer(run, layer)
        _write(
            folder / "layers" / f"{layer.slug}.html",
            pages,
            "layer.html",
            root="../",
            layer=layer,
            place=i + 1,
            before=run.layers[i - 1] if i else None,
            after=run.layers[i + 1] if i + 1 < len(run.layers) else None,
            neurons=neurons,
            summary=words.summary(neurons),
            scores=draw(charts.score_histogram(_known(neurons, run.reported))),
            ks=draw(charts.k_histogram(_known(neurons, "k"))),
        )


def _index(run: Run, layouts: Mapping[int, Layout]) -> dict[str, Any]:
    """Gather what the page of the run shows."""
    manifest = run.manifest
    first = [run.neurons[position] for position in _in_table_order(run)[:MOST_CARDS]]
    return {
        "run": run,
        "cards": [
            (neuron, layouts[neuron.position])
            for neuron in first
            if neuron.score is not None and neuron.position in layouts
        ],
        "manifest": manifest,
        "is_plain": manifest is not None and manifest.settings.get("embedding") == "plain",
        "summary": words.summary(run.neurons),
        "state": words.state(run),
        "by_layer": both_widths(charts.score_by_layer, run),
        "layers": [(layer, words.summary(_of_layer(run, layer))) for layer in run.layers],
        "cost": words.cost(manifest) if manifest else {},
        "settings": words.listed(manifest) if manifest else {},
        "versions": {**manifest.versions, **manifest.device} if manifest else {},
    }


def _write(path: Path, pages: Environment, template: str, **values: Any) -> None:
    """Write a page."""
    text = pages.get_template(template).render(**values)
    path.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def _in_table_order(run: Run) -> list[int]:
    """Put neurons in the order in which the table shows them at first."""
    rows = [{**neuron.values, "position": neuron.position} for neuron in run.neurons]
    known, unknown = ordered(rows, f"-{run.reported}")
    return [row["position"] for row in (*known, *unknown)]


def _of_layer(run: Run, layer: LayerSummary) -> list[NeuronSummary]:
    """List the neurons of a layer."""
    return [run.neurons[position] for position in layer.positions]


def _known(neurons: Sequence[NeuronSummary], column: str) -> list[Any]:
    """List the values of a column that exist."""
    return [neuron.values[column] for neuron in neurons if neuron.values[column] is not None]


def _numbers(neuron: NeuronSummary) -> dict[str, str]:
    """Format a neuron's numbers, by their key in the glossary."""
    columns = {
        "separation": "separation",
        "p": "p_value",
        "q": "q_value",
        "k": "k",
        "k_stability": "k_stability",
        "k_eff": "k_eff",
        "coverage": "coverage",
        "score_paper": "score_paper",
    }
    if neuron.reported != "score":
        columns = {"score": "score", **columns}
    if neuron.values.get(ABOVE_PHOTOS) is not None:
        columns[ABOVE_PHOTOS] = ABOVE_PHOTOS
    numbers = {key: words.shown(neuron, column) for key, column in columns.items()}
    return {**numbers, "activation": words.number(neuron.median_activation)}


def _colour(number: int) -> int:
    """Number of the colour of a cluster; 0 for the images that are not valid."""
    return (number - 1) % len(charts.PALETTE) + 1 if number else 0


def _place_on_sheet(columns: int, tile: int) -> Markup:
    """Say in CSS which part of the sheet a tile is."""
    row, column = divmod(tile, columns)
    return Markup(f"--column:{column};--row:{row}")


def _similarity(detail: NeuronDetail) -> dict[str, Any] | None:
    """Draw how similar a neuron's images are, and say it in numbers."""
    sizes = [len(cluster.pictures) for cluster in detail.clusters]
    count = sum(sizes)
    if count < 2:
        return None
    label = np.repeat(np.arange(len(sizes)), sizes)
    is_pair = ~np.eye(count, dtype=bool) & np.isfinite(detail.similarity)
    is_same = label[:, None] == label
    means = {
        name: float(detail.similarity[is_pair & which].mean())
        for name, which in (("in one cluster", is_same), ("of two clusters", ~is_same))
        if (is_pair & which).any()
    }
    image = base64.b64encode(rasters.heat_map(detail.similarity, sizes, _CELL)).decode()
    return {
        "image": Markup(f"data:image/png;base64,{image}"),
        "bands": [
            (cluster.number, start, length)
            for cluster, (start, length) in zip(
                detail.clusters, rasters.heat_map_bands(sizes, _CELL), strict=True
            )
        ],
        "means": " and ".join(f"{words.number(m, '.2f')} {name}" for name, m in means.items()),
    }


def _site_key(run: Run) -> str:
    """Tell this site from others, as pages that are opened as files share one storage."""
    return hashlib.sha256(str(run.path.resolve()).encode(errors="replace")).hexdigest()[:12]
