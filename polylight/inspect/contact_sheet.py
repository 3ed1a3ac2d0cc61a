"""The contact sheet: the most and the least polysemantic neurons of a run, as one picture."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from polylight.inspect.terminal import broken, printable
from polylight.run.atomic import write_atomically
from polylight.run.png import ImageError, decode_png
from polylight.run.reported import SCORE_TITLES, ReportedScore
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows, read_run

WIDTH = 1200
"""Width of a contact sheet, in pixels."""

_logger = logging.getLogger(__name__)
_MARGIN, _CAPTION, _ROW_GAP = 36, 216, 18
# A caption ends this far from the images.
_CAPTION_GAP = 16
_FRAME, _BORDER, _TAG = 2, 6, 20
# Between neighbours there is room for two borders, so that all strips share one grid of columns
# however they are divided into clusters.
_TILE_GAP = 2 * _BORDER + 5
_LEGEND, _HEADING, _SECTION_GAP = 32, 40, 12
_TITLE_SIZE, _TITLE_LINE = 28, 34
_NAME_SIZE, _NAME_LINE = 17, 20
_CARD, _EDGE, _INK, _FAINT = "#ffffff", "#d0d7de", "#1f2328", "#656d76"
# One colour for all: a colour that came back would say that two neurons share a feature.
_FRAME_COLOUR, _FRAME_FILL = "#8c959f", "#f1f4f7"
# Frames and text are drawn larger and reduced, since PIL's shapes have jagged edges.
_OVERSAMPLING = 2
_LEGEND_TEXT = (
    "A frame is a cluster, the strongest first. Below it: its share of what drives the neuron, and "
    "+n for its images that are not shown. Images that are not valid are left out."
)


class ShownCluster(NamedTuple):
    """What a sheet shows of a cluster."""

    cluster: int
    images: list[int]
    """Indices of images of the row, those of highest activation first."""
    hidden: int
    """Images of the cluster that are not shown."""


def extreme_rows(
    run_dir: str | Path, count: int, score: ReportedScore = "score"
) -> list[NeuronRow]:
    """Read the neurons of highest and of lowest score, pictures included, and no others.

    Args:
        run_dir: The run's directory.
        count: How many of either end, > 0.
        score: Which score.

    Returns:
        At most ``2 * count`` rows by falling score; neurons without a score are left out.

    Raises:
        InputError: If the directory or a part of it cannot be read.
    """
    scores = read_run(run_dir, columns=["neuron", score]).to_pylist()
    ranked = sorted((-s[score], s["neuron"]) for s in scores if s[score] is not None)
    ends = ranked if len(ranked) <= 2 * count else ranked[:count] + ranked[-count:]
    return _ranked(read_rows(run_dir, neurons=[neuron for _, neuron in ends]), score)


def shown_clusters(row: NeuronRow, tiles: int) -> tuple[list[ShownCluster], int]:
    """Choose the images of a neuron that a sheet has room for.

    Clusters get places by their strength, and at least one.

    Args:
        row: A neuron with a score and images.
        tiles: Places, > 1. Where there are fewer than clusters, the last one is for a number.

    Returns:
        The clusters that are shown, the strongest first, and the number of those that are not.
    """
    order = np.argsort(-row.cluster_weight, kind="stable").tolist()
    members = {c: np.flatnonzero(row.label == c) for c in order}
    present = [c for c in order if len(members[c])]
    if len(present) > tiles:
        tiles -= 1
    shown = present[:tiles]
    places = dict.fromkeys(shown, 1)
    for _ in range(tiles - len(shown)):
        # The next place goes to the cluster that is furthest below its share.
        growing = [c for c in shown if places[c] < len(members[c])]
        if not growing:
            break
        places[max(growing, key=lambda c: row.cluster_weight[c] / (places[c] + 0.5))] += 1
    chosen = []
    for cluster in shown:
        member, place = members[cluster], places[cluster]
        best = member[np.argsort(-row.activation[member], kind="stable")][:place]
        chosen.append(ShownCluster(cluster, best.tolist(), len(member) - place))
    return chosen, len(present) - len(shown)


def contact_sheet(
    rows: Sequence[NeuronRow],
    path: str | Path,
    *,
    count: int = 4,
    tiles: int = 9,
    title: str = "",
    score: ReportedScore = "score",
) -> None:
    """Draw the most and the least polysemantic neurons, each as a strip of its images by cluster.

    Each cluster has a frame, and below it its strength and the number of its images that are not
    shown. An image that cannot be read is crossed out, and named in the log.

    Args:
        rows: Neurons with images; those without a score are left out.
        path: The PNG file to write, ``WIDTH`` pixels wide; replaced if it is there.
        count: How many neurons of either end, > 0.
        tiles: Most images of a neuron, > 1.
        title: A heading, or nothing.
        score: The one that neurons are ranked by and shown with.

    Raises:
        ValueError: If no row has both a score and an image.
    """
    ranked = [row for row in _ranked(rows, score) if len(row.image)]
    if not ranked:
        raise ValueError("a contact sheet needs at least one neuron with a score and images")
    by = "" if score == "score" else f" by the {SCORE_TITLES[score]}"
    if len(ranked) <= 2 * count:
        sections = [(f"from most to least polysemantic{by}", ranked)]
    else:
        sections = [
            (f"most polysemantic{by}", ranked[:count]),
            (f"least polysemantic{by}", ranked[-count:]),
        ]
    room = WIDTH - 2 * _MARGIN - _CAPTION - 2 * _BORDER + _TILE_GAP
    tile = room // tiles - _TILE_GAP
    left = _MARGIN + _CAPTION + room % tiles
    strip = tile + 2 * _BORDER + _TAG
    names = {id(row): _lines(row.neuron, _CAPTION - _CAPTION_GAP, _NAME_SIZE) for row in ranked}
    heights = {key: max(strip, _caption_height(name)) for key, name in names.items()}
    titles = _lines(title, WIDTH - 2 * _MARGIN, _TITLE_SIZE) if title else []
    height = 2 * _MARGIN - _ROW_GAP + len(titles) * _TITLE_LINE + _LEGEND
    height += sum(_HEADING + sum(heights[id(r)] + _ROW_GAP for r in part) for _, part in sections)
    height += (len(sections) - 1) * _SECTION_GAP
    sheet = _Sheet(height)
    y = _MARGIN
    for line in titles:
        sheet.text((_MARGIN, y - 6), line, _TITLE_SIZE, _INK)
        y += _TITLE_LINE
    sheet.text((_MARGIN, y), _LEGEND_TEXT, 14, _FAINT)
    y += _LEGEND
    for heading, part in sections:
        sheet.text((_MARGIN, y), heading, 17, _FAINT)
        sheet.line(y + 28)
        y += _HEADING
        for row in part:
            _draw_caption(sheet, row, names[id(row)], y, score)
            _draw_strip(sheet, row, tiles, tile, (left, y))
            y += heights[id(row)] + _ROW_GAP
        y += _SECTION_GAP
    sheet.save(Path(path))


class _Sheet:
    """A white card, opaque up to its corners: what is clear is black in many a viewer."""

    def __init__(self, height: int) -> None:
        self.size = (WIDTH, height)
        self._card = Image.new("RGB", (WIDTH * _OVERSAMPLING, height * _OVERSAMPLING), _CARD)
        self._draw = ImageDraw.Draw(self._card)
        self._tiles: list[tuple[Image.Image, tuple[int, int]]] = []

    def frame(self, box: tuple[int, int, int, int]) -> None:
        """Draw a rectangle with round corners around left, top, right, bottom."""
        scaled = [value * _OVERSAMPLING for value in box]
        width = _FRAME * _OVERSAMPLING
        self._draw.rounded_rectangle(scaled, 8 * _OVERSAMPLING, _FRAME_FILL, _FRAME_COLOUR, width)

    def line(self, y: int) -> None:
        """Rule the card from margin to margin."""
        ends = [(_MARGIN * _OVERSAMPLING, y * _OVERSAMPLING)]
        ends.append(((WIDTH - _MARGIN) * _OVERSAMPLING, y * _OVERSAMPLING))
        self._draw.line(ends, _EDGE, _OVERSAMPLING)

    def text(self, at: tuple[int, int], text: str, size: int, colour: str) -> None:
        """Write a line, its top left corner at a point."""
        scaled = (at[0] * _OVERSAMPLING, at[1] * _OVERSAMPLING)
        self._draw.text(scaled, text, colour, _font(size * _OVERSAMPLING))

    def picture(self, at: tuple[int, int], image: Image.Image, size: int) -> None:
        """Place a picture, scaled to a square."""
        self._tiles.append((image.resize((size, size), Image.Resampling.LANCZOS), at))

    def crossed(self, at: tuple[int, int], size: int) -> None:
        """Cross a place out."""
        left, top = (value * _OVERSAMPLING for value in at)
        right, bottom = left + size * _OVERSAMPLING, top + size * _OVERSAMPLING
        self._draw.rectangle((left, top, right, bottom), _EDGE)
        for ends in ((left, top, right, bottom), (left, bottom, right, top)):
            self._draw.line(ends, _FAINT, 2 * _OVERSAMPLING)

    def save(self, path: Path) -> None:
        """Reduce the drawing, put the pictures in at their own resolution, and write the file."""
        sheet = self._card.resize(self.size, Image.Resampling.LANCZOS)
        for image, at in self._tiles:
            sheet.paste(image, at)
        write_atomically(path, lambda file: sheet.save(file, format="PNG", optimize=True))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """PIL's own font, of a size in pixels."""
    return ImageFont.load_default(size=size)


def _lines(text: str, width: int, size: int) -> list[str]:
    """Break a text into lines of a width in pixels, between the tokens of names."""
    font = _font(size * _OVERSAMPLING)
    return broken(printable(text), width * _OVERSAMPLING, measure=font.getlength)


def _ranked(rows: Sequence[NeuronRow], score: ReportedScore) -> list[NeuronRow]:
    """Order rows by falling score; leave out those without."""
    values = [(getattr(row, score), row) for row in rows]
    scored = [(-value, row.neuron, row) for value, row in values if value is not None]
    return [row for _, _, row in sorted(scored, key=lambda item: item[:2])]


def _caption_height(name: Sequence[str]) -> int:
    """Height of a caption whose name takes some lines."""
    return len(name) * _NAME_LINE + 66


def _draw_caption(
    sheet: _Sheet, row: NeuronRow, name: Sequence[str], y: int, score: ReportedScore
) -> None:
    """Write a neuron's name, score and number of clusters."""
    for i, line in enumerate(name):
        sheet.text((_MARGIN, y + 2 + _NAME_LINE * i), line, _NAME_SIZE, _INK)
    y += _NAME_LINE * len(name)
    sheet.text((_MARGIN, y + 3), f"{getattr(row, score):.2f}", 36, _INK)
    if score == "score" and row.score_low is not None and row.score_high is not None:
        interval = f"{row.score_low:.2f} - {row.score_high:.2f}"
        sheet.text((_MARGIN + 84, y + 22), interval, 14, _FAINT)
    clusters = f"{row.k} cluster" + ("s" if row.k != 1 else "")
    valid = int((row.label >= 0).sum())
    images = f"{valid} of {row.num_images}" if valid < row.num_images else f"{valid}"
    sheet.text((_MARGIN, y + 48), f"{clusters} in {images} images", 14, _FAINT)


def _draw_strip(sheet: _Sheet, row: NeuronRow, tiles: int, tile: int, at: tuple[int, int]) -> None:
    """Draw the clusters of a neuron from left to right."""
    clusters, hidden = shown_clusters(row, tiles)
    x, y = at[0] + _BORDER, at[1]
    bottom = y + tile + 2 * _BORDER
    for cluster, images, more in clusters:
        left, right = x - _BORDER, x + len(images) * (tile + _TILE_GAP) - _TILE_GAP + _BORDER
        sheet.frame((left, y, right, bottom))
        for image in images:
            _draw_image(sheet, row, image, tile, (x, y + _BORDER))
            x += tile + _TILE_GAP
        tag = f"{row.cluster_weight[cluster]:.0%}" + (f"  +{more}" if more else "")
        sheet.text((left + 2, bottom + 4), tag, 13, _FAINT)
    if hidden:
        sheet.text((x, y + tile // 2 - 14), f"+{hidden}", 20, _INK)
        sheet.text((x, y + tile // 2 + 10), "cluster" + ("s" if hidden > 1 else ""), 14, _FAINT)


def _draw_image(sheet: _Sheet, row: NeuronRow, image: int, tile: int, at: tuple[int, int]) -> None:
    """Draw an image of a neuron, or cross its place out."""
    try:
        sheet.picture(at, Image.fromarray(decode_png(row.image[image])), tile)
    except ImageError as error:
        _logger.warning(
            "image %d of neuron %s is crossed out: %s", image, printable(row.neuron), error
        )
        sheet.crossed(at, tile)
