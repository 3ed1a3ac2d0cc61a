"""The report on paper: a summary of a run, and its most telling neurons, as one PDF file.

Python gathers what is shown, as text and as picture files; ``templates/report.typ`` lays it out.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Literal

import typst

from polylight.errors import InputError, nearest
from polylight.report import charts, words
from polylight.report.content import LayerSummary, NeuronSummary, Run
from polylight.report.explanation import glossary
from polylight.report.gather import read_details
from polylight.report.paper import (
    CARD_SIDE,
    COLUMNS,
    GAP,
    INK,
    Data,
    entry,
    head,
    strip,
    write_run_photos,
    write_tiles,
)
from polylight.report.rasters import cut
from polylight.run.atomic import write_atomically

EACH_END = 10
"""How many neurons of highest and of lowest score are shown unless others are asked for."""

_TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
_ON_FIRST_PAGE = 5
_LAYERS_A_CHART = 40
_CHART_WIDTH = 640


@dataclass(frozen=True)
class Section:
    """A heading, and the neurons below it."""

    title: str
    positions: Sequence[int]
    """Of its neurons in ``Run.neurons``."""


def write_pdf(run: Run, path: str | Path, neurons: Sequence[str] | None = None) -> None:
    """Write a summary of a run and some of its neurons, each with its images, as PDF.

    The file has an outline and is tagged for screen readers (PDF/UA-1, unless a name has
    characters that no font at hand can show). It needs no font, library or program of the system,
    loads nothing from a network, and is the same to the byte for the same run.

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
    with tempfile.TemporaryDirectory(prefix="polylight-") as folder:
        report = _report(run, sections, Path(folder))
        # What is no Unicode in the name of a directory cannot be shown.
        data = json.dumps(report, ensure_ascii=False).encode(errors="replace")
        (Path(folder) / "report.json").write_bytes(data)
        shutil.copy(_TEMPLATE, folder)
        pdf = _compiled(Path(folder), run)
    write_atomically(Path(path), lambda file: file.write(pdf))


def extremes(run: Run) -> list[Section]:
    """Choose the neurons of highest and of lowest score.

    Args:
        run: The run.

    Returns:
        Two sections; one with all neurons that have a score, the highest first, where they are no
        more than ``2 * EACH_END``; none where none has.
    """
    ranked = _ranked(run)
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


def _ranked(run: Run) -> list[int]:
    """Order the neurons that have a score, the highest first."""
    scored = [
        (-neuron.score, neuron.name, neuron.position)
        for neuron in run.neurons
        if neuron.score is not None
    ]
    return [position for _, _, position in sorted(scored)]


def _report(run: Run, sections: Sequence[Section], folder: Path) -> Data:
    """Gather all that the template shows, and write its pictures."""
    ranked = _ranked(run)
    each = min(_ON_FIRST_PAGE, -(-len(ranked) // 2))
    most, least = ranked[:each], ranked[each:][: -each - 1 : -1]
    wanted = {position for section in sections for position in section.positions}
    entries, cards = {}, {}
    for summary, detail in read_details(run, {*wanted, *most, *least}):
        images = cut(detail)
        tiles = write_tiles(summary, detail, images, folder)
        cards[summary.position] = {**head(summary), "groups": strip(detail, tiles)}
        if summary.position in wanted:
            entries[summary.position] = entry(run, summary, detail, images, tiles, wanted, folder)
    write_run_photos(run, entries.values(), folder)
    for position in cards:
        cards[position]["linked"] = position in wanted
    return {
        "name": run.name,
        "title": f"{run.name}: polysemanticity of its neurons",
        "facts": list(_facts(run).items()),
        "notes": list(_notes(run)),
        "most": [cards[position] for position in most],
        "least": [cards[position] for position in least],
        "charts": list(_charts(run, folder)),
        "columns": list(COLUMNS.items()),
        "sections": [
            {"title": section.title, "neurons": [str(p) for p in section.positions]}
            for section in sections
        ],
        "neurons": {str(position): shown for position, shown in entries.items()},
        "glossary": [(name, meaning) for _, name, meaning in glossary(run)],
        "made": list(_made(run)),
        "gap": GAP,
        "card": CARD_SIDE,
        "is-dated": _when(run) is not None,
    }


def _facts(run: Run) -> dict[str, str]:
    """Sum a run up."""
    found = {}
    if run.manifest is not None:
        found["network"] = str(run.manifest.subject.get("name", words.NONE))
        found["embedded by"] = str(run.manifest.embedder.get("name", words.NONE))
    return {**found, **words.summary(run.neurons)}


def _notes(run: Run) -> Iterator[str]:
    """Say what is missing, and which score is shown where it is not polylight's."""
    if run.reported != "score":
        yield f"Scores are the {run.score_title}."
    if not run.neurons or all(neuron.score is None for neuron in run.neurons):
        yield "No neuron of this run has a score."
    if run.state != "finished":
        yield words.state(run)
    for missing in run.unreadable:
        yield f"Could not be read: {missing.path} ({missing.reason})"


def _charts(run: Run, folder: Path) -> Iterator[Data]:
    """Draw the scores of the layers, as many charts as pages can hold."""
    for first in range(0, len(run.layers), _LAYERS_A_CHART):
        layers: list[LayerSummary] = []
        neurons: list[NeuronSummary] = []
        for layer in run.layers[first : first + _LAYERS_A_CHART]:
            start = len(neurons)
            neurons += [run.neurons[position] for position in layer.positions]
            layers.append(replace(layer, positions=range(start, len(neurons))))
        spec = charts.score_by_layer(
            replace(run, layers=layers, neurons=neurons), width=_CHART_WIDTH, ink=INK
        )
        (folder / f"layers-{first}.svg").write_text(charts.to_svg(spec), encoding="utf-8")
        yield {
            "file": f"/layers-{first}.svg",
            "alt": spec["description"],
            "layers": len(layers),
        }


def _made(run: Run) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """List what made a run, with its cost and its hashes."""
    if run.manifest is None:
        return
    yield "Cost", list(words.cost(run.manifest).items())
    yield "Networks and settings", list(words.listed(run.manifest).items())
    versions = {key: str(value) for key, value in run.manifest.versions.items()}
    hashes = {
        "hash of the settings": run.manifest.settings_hash,
        "hash of the reference frame": run.manifest.reference_hash or words.NONE,
    }
    yield "Versions and hashes", list({**versions, **hashes}.items())


def _when(run: Run) -> datetime | None:
    """Find when a run changed last: the document's date, so that it is the same however often."""
    try:
        last = datetime.fromisoformat(run.manifest.updated) if run.manifest else None
    except ValueError:
        return None
    return last if last is not None and last.tzinfo is not None else None


def _compiled(folder: Path, run: Run) -> bytes:
    """Let the template make the document; where a font lacks a character, without the standard."""
    try:
        return _typeset(folder, run, "ua-1")
    except typst.TypstError as error:
        if "could not be displayed" not in str(error):
            raise
        return _typeset(folder, run, None)


def _typeset(folder: Path, run: Run, standard: Literal["ua-1"] | None) -> bytes:
    """Let the template make the document out of what is in a folder."""
    pdf, found = typst.compile_with_warnings(
        folder / _TEMPLATE.name,
        root=folder,
        font_paths=_fonts(),
        timestamp=_when(run) or 0,
        pdf_standards=standard,
    )
    for warning in found:
        warnings.warn(warning, stacklevel=2)
    return pdf


@cache
def _fonts() -> typst.Fonts:
    """Find fonts once: those that come with the renderer, and the system's for rare scripts."""
    return typst.Fonts()
