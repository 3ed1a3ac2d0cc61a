"""The report as a folder of static pages, which need neither a server nor a network."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from polylight.inspect.neuron_table import ordered
from polylight.report import charts, words
from polylight.report.content import LayerSummary, NeuronDetail, NeuronSummary, Run, Unreadable
from polylight.report.gather import read_details
from polylight.report.photos import noting, sentence, shown_photos, write_photos
from polylight.report.table import write_table

GENERATOR = f"polylight {version('polylight')}"
"""What pages name as their maker, by which a folder is known to be a report."""

_ASSETS = Path(__file__).parent / "assets"


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
    pages.globals.update(run=run, has_pdf=has_pdf, home=home, site=_site_key(run))
    for name in ("layers", "neurons", "images", "thumbs"):
        (folder / name).mkdir()
    write_assets(folder)
    wanted: set[int] = set()
    found = noting(read_details(run) if details is None else details, wanted)
    thumbs, damaged = _write_neurons(run, folder, pages, found)
    if run.photos is not None:
        (folder / "photos").mkdir()
        damaged += write_photos(run.photos, folder / "photos", wanted)
    run = replace(run, unreadable=[*run.unreadable, *damaged])
    write_table(run, folder / "assets" / "neurons.js", thumbs)
    _write_layers(run, folder, pages)
    _write(folder / "index.html", pages, "index.html", root="", **_index(run))
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
        words=words.GLOSSARY,
        number=words.number,
        shown=words.shown,
        interval=words.interval,
        percent=words.percent,
        counted=words.counted,
        colour=_colour,
        said_of_photos=sentence,
        shown_photos=shown_photos,
        place_on_sheet=_place_on_sheet,
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
    (assets / "vega.js").write_text(_bundle(), encoding="utf-8")


@cache
def _bundle() -> str:
    """Make the script that draws charts; it takes seconds."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # In a function of its own, so that its names do not become those of the page.
    return f"(() => {{{bundle}\n}})();\n"


def _write_neurons(
    run: Run,
    folder: Path,
    pages: Environment,
    details: Iterable[tuple[NeuronSummary, NeuronDetail]],
) -> tuple[dict[int, int], list[Unreadable]]:
    """Write a page a neuron; return how many medoids each thumbnail shows, and damaged images."""
    order = _in_table_order(run)
    place = {position: i for i, position in enumerate(order)}
    layers = {layer.name: layer for layer in run.layers}
    manifest = run.manifest
    settings = words.listed(manifest) if manifest else {}
    selection = settings.get("scoring.selection", "bic")
    thumbs: dict[int, int] = {}
    damaged: list[Unreadable] = []
    for neuron, detail in details:
        at = place[neuron.position]
        if detail.sheet:
            (folder / "images" / f"{neuron.slug}.jpg").write_bytes(detail.sheet)
        if detail.thumb:
            (folder / "thumbs" / f"{neuron.slug}.jpg").write_bytes(detail.thumb)
        thumbs[neuron.position] = detail.thumbs
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
            verdict=[*words.verdict(neuron), *_crossed(detail)],
            numbers=_numbers(neuron),
            similarity=charts.similarity_matrix(
                detail.similarity,
                [len(cluster.pictures) for cluster in detail.clusters],
                [cluster.number for cluster in detail.clusters],
            ),
            bic=charts.bic_curve(detail.bic, neuron.values["k"]),
            why_k=words.why_k(neuron, detail, selection),
            similar=[(run.neurons[other.position], other.cosine) for other in neuron.similar],
            command=words.reproduction(run, neuron),
            made=words.making(neuron),
            settings=settings,
        )
    return thumbs, damaged


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
            scores=charts.score_histogram(_known(neurons, "score")),
            ks=charts.k_histogram(_known(neurons, "k")),
        )


def _index(run: Run) -> dict[str, Any]:
    """Gather what the page of the run shows."""
    manifest = run.manifest
    return {
        "run": run,
        "manifest": manifest,
        "summary": words.summary(run.neurons),
        "state": words.state(run),
        "by_layer": charts.score_by_layer(run),
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
    known, unknown = ordered(rows, "-score")
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
    numbers = {key: words.shown(neuron, column) for key, column in columns.items()}
    return {**numbers, "activation": words.number(neuron.median_activation)}


def _colour(number: int) -> int:
    """Number of the colour of a cluster; 0 for the images that are not valid."""
    return (number - 1) % len(charts.PALETTE) + 1 if number else 0


def _place_on_sheet(detail: NeuronDetail, tile: int) -> Markup:
    """Say in CSS which part of the sheet a tile is."""
    # Asked for every tile of every page, so without a list of them all.
    count = sum(len(cluster.pictures) for cluster in detail.clusters)
    last_column, last_row = detail.columns - 1, math.ceil(count / detail.columns) - 1
    row, column = divmod(tile, detail.columns)
    x = 100 * column / last_column if last_column else 0.0
    y = 100 * row / last_row if last_row else 0.0
    return Markup(f"background-position:{x:.4g}% {y:.4g}%")


def _site_key(run: Run) -> str:
    """Tell this site from others, as pages that are opened as files share one storage."""
    return hashlib.sha256(str(run.path.resolve()).encode(errors="replace")).hexdigest()[:12]
