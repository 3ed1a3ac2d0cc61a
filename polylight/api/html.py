"""What a notebook shows of a run and of a neuron: HTML that stands by itself."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median

from PIL import Image

from polylight.inspect.contact_sheet import extreme_rows, shown_clusters
from polylight.report.rasters import draw_sheet, draw_strip, read_pictures
from polylight.run.manifest import read_manifest
from polylight.run.schema import NeuronRow
from polylight.run.store import read_run

# Of either end of a run; with so many a page stays below a megabyte.
_EACH_END = 6
_TILES = 10
# Drawn at twice the size that it is shown at, for sharp screens.
_STRIP_PIXELS, _STRIP_SHOWN = 88, 44
_SHEET_PIXELS, _SHEET_SHOWN = 144, 72

# Colours that a light and a dark page can have behind them.
_FRAME = "border:1px solid rgba(128,128,128,.55);border-radius:5px;padding:3px 3px 2px"
_FAINT = "opacity:.65;font-size:11px"
_CELL = (
    "text-align:left;vertical-align:middle;padding:7px 16px 7px 0;border:0;"
    "border-top:1px solid rgba(128,128,128,.25);background:none"
)
_FONT = "font:13px/1.35 system-ui,sans-serif"


def run_html(run_dir: Path) -> str:
    """Show the most and the least polysemantic neurons of a run, each a strip of its clusters.

    Args:
        run_dir: The run's directory.

    Returns:
        A fragment of HTML with all pictures in it, below a megabyte.
    """
    table = read_run(run_dir, columns=["status", "score"])
    scores = [score for score in table["score"].to_pylist() if score is not None]
    manifest = read_manifest(run_dir)
    facts = [f"{table.num_rows:,} neuron{'s' if table.num_rows != 1 else ''}"]
    if scores:
        facts.append(f"median score {median(scores):.2f}")
    if len(scores) < table.num_rows:
        facts.append(f"{table.num_rows - len(scores):,} without a score")
    if len(scores) > 2 * _EACH_END:
        facts.append(f"the {_EACH_END} most and the {_EACH_END} least polysemantic")
    if manifest and manifest.embedder:
        facts.append(f"images compared by {manifest.embedder['name']}")
    name = str(manifest.subject.get("name", "")) if manifest else ""
    rows = "".join(_table_row(row) for row in extreme_rows(run_dir, _EACH_END))
    return (
        f'<div style="{_FONT};overflow-x:auto">'
        f'<div style="margin:4px 0 8px"><b>{escape(name)}</b> '
        f'<span style="opacity:.75">{escape(" · ".join(facts))}</span></div>'
        f'<table style="border-collapse:collapse;border:0;margin:0">{rows}</table></div>'
    )


def neuron_html(row: NeuronRow) -> str:
    """Show a neuron: its score, and the images of each of its clusters.

    Args:
        row: The neuron.

    Returns:
        A fragment of HTML with all pictures in it.
    """
    weight = dict(enumerate(row.cluster_weight.tolist()))
    order = sorted(weight, key=lambda cluster: -weight[cluster])
    groups = [(f"{weight[c]:.0%}", (row.label == c).nonzero()[0].tolist()) for c in order]
    groups.append(("not valid", (row.label < 0).nonzero()[0].tolist()))
    frames = []
    for said, members in groups:
        members.sort(key=lambda image: -float(row.activation[image]))
        if members:
            pictures = _reduced(read_pictures([row.image[image] for image in members]))
            sheet = draw_sheet(pictures)
            width = sheet.columns * _SHEET_SHOWN
            caption = f"{said}, {len(members)} image{'s' if len(members) != 1 else ''}"
            frames.append(_frame(sheet.jpeg, f'width="{width}"', caption, f"{row.neuron}: {said}"))
    return (
        f'<div style="{_FONT}"><div style="margin:4px 0 8px">{_headline(row)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start">'
        f"{''.join(frames)}</div></div>"
    )


def _table_row(row: NeuronRow) -> str:
    clusters, hidden = shown_clusters(row, _TILES)
    frames = []
    for cluster, images, more in clusters:
        pictures = read_pictures([row.image[image] for image in images])
        jpeg = draw_strip(pictures, _STRIP_PIXELS)
        caption = f"{row.cluster_weight[cluster]:.0%}" + (f" +{more}" if more else "")
        size = f'height="{_STRIP_SHOWN}" width="{_STRIP_SHOWN * len(images)}"'
        frames.append(_frame(jpeg, size, caption, f"{row.neuron}: cluster of {caption}"))
    if hidden:
        frames.append(f'<span style="{_FAINT};align-self:center">+{hidden} clusters</span>')
    return (
        f'<tr style="background:none"><td style="{_CELL}">{_headline(row, lines=True)}</td>'
        f'<td style="{_CELL}"><div style="display:flex;gap:6px">{"".join(frames)}</div></td></tr>'
    )


def _headline(row: NeuronRow, *, lines: bool = False) -> str:
    """Name, score, interval and number of clusters: in two lines, or in one."""
    name = f"<code>{escape(row.neuron)}</code>"
    if row.score is None:
        return f"{name} {escape(row.status)}"
    score = f'<b style="font-size:17px;font-variant-numeric:tabular-nums">{row.score:.2f}</b>'
    if row.score_low is not None and row.score_high is not None:
        score += f' <span style="{_FAINT}">{row.score_low:.2f} - {row.score_high:.2f}</span>'
    valid = int((row.label >= 0).sum())
    images = f"{valid} of {row.num_images}" if valid < row.num_images else str(valid)
    clusters = f"{row.k} cluster{'s' if row.k != 1 else ''} in {images} images"
    said = f'<span style="{_FAINT}">{clusters}</span>'
    between = "<br>" if lines else " &nbsp; "
    return f"{name}{between}{score}{between}{said}"


def _frame(jpeg: bytes, size: str, caption: str, alt: str) -> str:
    """The pictures of a cluster in a frame, its caption below them."""
    data = base64.b64encode(jpeg).decode()
    return (
        f'<div style="{_FRAME};flex:none">'
        f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(alt)}" '
        'style="display:block;border-radius:3px;max-width:none;margin:0">'
        f'<span style="{_FAINT}">{escape(caption)}</span></div>'
    )


def _reduced(pictures: Sequence[Image.Image | None]) -> Sequence[Image.Image | None]:
    for picture in pictures:
        if picture is not None:
            picture.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS), Image.Resampling.LANCZOS)
    return pictures
