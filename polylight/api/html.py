"""What a notebook shows of a run and of a neuron: HTML that stands by itself."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median

from polylight.inspect.contact_sheet import extreme_rows, shown_clusters
from polylight.report.rasters import draw_strip, read_pictures
from polylight.run.manifest import read_manifest
from polylight.run.schema import NeuronRow
from polylight.run.store import read_run

# Of either end of a run; with so many the page of a run stays near a megabyte whatever it shows.
_EACH_END = 6
_TILES = 10
# Sides in pixels as they are shown; drawn at twice that, for sharp screens.
_SMALL, _LARGE = 44, 72

# Colours that a light and a dark page can have behind them.
_FRAME = (
    "flex:none;border:1px solid rgba(128,128,128,.55);border-radius:5px;padding:3px 3px 1px;"
    "box-sizing:content-box"
)
_FAINT = "opacity:.65;font-size:11px"
_CELL = (
    "text-align:left;vertical-align:middle;padding:7px 16px 7px 0;border:0;"
    "border-top:1px solid rgba(128,128,128,.25);background:none"
)
_FONT = "font:13px/1.35 system-ui,sans-serif"
_LEGEND = (
    "A frame is a cluster, the strongest first; below it its share of what drives the neuron, and "
    "+n for its images that are not shown."
)


def run_html(run_dir: Path) -> str:
    """Show the most and the least polysemantic neurons of a run, each a strip of its clusters.

    Args:
        run_dir: The run's directory.

    Returns:
        A fragment of HTML with all pictures in it, bounded in size.
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
        f'<table style="border-collapse:collapse;border:0;margin:0">{rows}</table>'
        f'<div style="{_FAINT};margin:2px 0 6px">{_LEGEND if rows else ""}</div></div>'
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
            caption = f"{said}, {len(members)} image{'s' if len(members) != 1 else ''}"
            frames.append(_frame(row, members, _LARGE, caption))
    return (
        f'<div style="{_FONT}"><div style="margin:4px 0 8px">{_headline(row)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start">'
        f"{''.join(frames)}</div></div>"
    )


def _table_row(row: NeuronRow) -> str:
    clusters, hidden = shown_clusters(row, _TILES)
    frames = []
    for cluster, images, more in clusters:
        caption = f"{row.cluster_weight[cluster]:.0%}" + (f" +{more}" if more else "")
        frames.append(_frame(row, images, _SMALL, caption))
    if hidden:
        frames.append(f'<span style="{_FAINT};align-self:center">+{hidden} clusters</span>')
    return (
        f'<tr style="background:none"><td style="{_CELL};min-width:150px;max-width:260px;'
        f'overflow-wrap:anywhere">{_headline(row, lines=True)}</td>'
        f'<td style="{_CELL}"><div style="display:flex;gap:6px">{"".join(frames)}</div></td></tr>'
    )


def _headline(row: NeuronRow, *, lines: bool = False) -> str:
    """Name, score, interval and number of clusters: in two lines, or in one."""
    # Long names, of composites, are broken between their components.
    name = f"<code>{escape(row.neuron).replace(',', ',<wbr>')}</code>"
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


def _frame(row: NeuronRow, images: Sequence[int], side: int, caption: str) -> str:
    """Images of a neuron in a frame, a caption below them; a damaged one is crossed out."""
    pictures = read_pictures([row.image[image] for image in images])
    shown = []
    for image, picture in zip(images, pictures, strict=True):
        data = base64.b64encode(draw_strip([picture], 2 * side)).decode()
        shown.append(
            f'<img src="data:image/jpeg;base64,{data}" width="{side}" height="{side}" '
            f'alt="{escape(row.neuron)}: image {image}" style="border-radius:3px;margin:0">'
        )
    columns = min(len(images), 8 if side == _LARGE else len(images))
    # As wide as its images are, however long the caption is.
    width = columns * (side + 2) - 2
    return (
        f'<div style="{_FRAME};width:{width}px">'
        f'<div style="display:flex;flex-wrap:wrap;gap:2px">{"".join(shown)}</div>'
        f'<span style="{_FAINT};white-space:nowrap">{escape(caption)}</span></div>'
    )
