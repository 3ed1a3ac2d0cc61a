"""The contact sheet: the most and the least polysemantic neurons of a run, as one picture."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from polylight.inspect.palette import PALETTE
from polylight.run.atomic import write_atomically
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows, read_run

WIDTH = 1200
_MARGIN, _CAPTION, _ROW_GAP = 36, 216, 18
_FRAME, _BORDER, _TAG = 3, 6, 20
# Between neighbours there is room for two borders, so that all strips share one grid of columns
# however they are divided into clusters.
_TILE_GAP = 2 * _BORDER + 5
_HEADING, _SECTION_GAP, _TITLE = 40, 12, 52
# Characters of a caption's line; the letters of PIL's own font are of different widths.
_NAME_LENGTH = 22
_CARD, _EDGE, _INK, _FAINT = "#ffffff", "#d0d7de", "#1f2328", "#656d76"
# Frames and text are drawn larger and reduced, since PIL's shapes have jagged edges.
_OVERSAMPLING = 2

Group = tuple[int, list[bytes]]


def extreme_rows(run_dir: str | Path, count: int) -> list[NeuronRow]:
    """Read the neurons of highest and of lowest score, pictures included, and no others.

    Args:
        run_dir: The run's directory.
        count: How many of either end, > 0.

    Returns:
        At most ``2 * count`` rows by falling score; neurons without a score are left out.

    Raises:
        InputError: If the directory or a part of it cannot be read.
    """
    scores = read_run(run_dir, columns=["neuron", "score"]).to_pylist()
    ranked = sorted((-s["score"], s["neuron"]) for s in scores if s["score"] is not None)
    ends = ranked if len(ranked) <= 2 * count else ranked[:count] + ranked[-count:]
    return _ranked(read_rows(run_dir, neurons=[neuron for _, neuron in ends]))


def contact_sheet(
    rows: Sequence[NeuronRow], path: str | Path, *, count: int = 4, tiles: int = 9, title: str = ""
) -> None:
    """Draw the most and the least polysemantic neurons, each as a strip of its images by cluster.

    Each cluster has a frame of its own colour and its strength below, the strongest cluster first;
    in it the images of highest activation come first. Clusters get places by their strength, and
    at least one.

    Args:
        rows: Neurons with images; those without a score are left out.
        path: The PNG file to write, ``WIDTH`` pixels wide; replaced if it is there.
        count: How many neurons of either end, > 0.
        tiles: Most images of a neuron, > 0.
        title: A heading, or nothing.

    Raises:
        ValueError: If no row has both a score and an image.
    """
    ranked = [row for row in _ranked(rows) if len(row.image)]
    if not ranked:
        raise ValueError("a contact sheet needs at least one neuron with a score and images")
    if len(ranked) <= 2 * count:
        sections = [("from most to least polysemantic", ranked)]
    else:
        sections = [
            ("most polysemantic", ranked[:count]),
            ("least polysemantic", ranked[-count:]),
        ]
    room = WIDTH - 2 * _MARGIN - _CAPTION - 2 * _BORDER + _TILE_GAP
    tile = room // tiles - _TILE_GAP
    left = _MARGIN + _CAPTION + room % tiles
    strip = tile + 2 * _BORDER + _TAG
    height = 2 * _MARGIN - _ROW_GAP + (_TITLE if title else 0)
    height += sum(_HEADING + len(part) * (strip + _ROW_GAP) for _, part in sections)
    height += (len(sections) - 1) * _SECTION_GAP
    sheet = _Sheet(height)
    y = _MARGIN
    if title:
        sheet.text((_MARGIN, y - 6), title, 28, _INK)
        y += _TITLE
    for heading, part in sections:
        sheet.text((_MARGIN, y), heading, 17, _FAINT)
        sheet.line(y + 28)
        y += _HEADING
        for row in part:
            _draw_caption(sheet, row, y)
            _draw_strip(sheet, row, _groups(row, tiles), tile, (left, y))
            y += strip + _ROW_GAP
        y += _SECTION_GAP
    sheet.save(Path(path))


class _Sheet:
    """A white card with round corners, clear around them, so that it suits a page of any colour."""

    def __init__(self, height: int) -> None:
        self.size = (WIDTH, height)
        self._card = Image.new("RGBA", (WIDTH * _OVERSAMPLING, height * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._card)
        self._tiles: list[tuple[Image.Image, tuple[int, int]]] = []
        self.frame((1, 1, WIDTH - 2, height - 2), _EDGE, 1, radius=16)

    def frame(
        self,
        box: tuple[int, int, int, int],
        colour: str,
        thickness: int,
        radius: int = 8,
        fill: str | tuple[int, ...] = _CARD,
    ) -> None:
        """Draw a rectangle with round corners around left, top, right, bottom."""
        scaled = [value * _OVERSAMPLING for value in box]
        self._draw.rounded_rectangle(
            scaled, radius * _OVERSAMPLING, fill, colour, thickness * _OVERSAMPLING
        )

    def line(self, y: int) -> None:
        """Rule the card from margin to margin."""
        ends = [(_MARGIN * _OVERSAMPLING, y * _OVERSAMPLING)]
        ends.append(((WIDTH - _MARGIN) * _OVERSAMPLING, y * _OVERSAMPLING))
        self._draw.line(ends, _EDGE, _OVERSAMPLING)

    def text(self, at: tuple[int, int], text: str, size: int, colour: str) -> None:
        """Write a line, its top left corner at a point."""
        font = ImageFont.load_default(size=size * _OVERSAMPLING)
        self._draw.text((at[0] * _OVERSAMPLING, at[1] * _OVERSAMPLING), text, colour, font)

    def picture(self, at: tuple[int, int], png: bytes, size: int) -> None:
        """Place a picture, scaled to a square."""
        image = Image.open(io.BytesIO(png)).convert("RGB")
        self._tiles.append((image.resize((size, size), Image.Resampling.LANCZOS), at))

    def save(self, path: Path) -> None:
        """Reduce the drawing, put the pictures in at their own resolution, and write the file."""
        sheet = self._card.resize(self.size, Image.Resampling.LANCZOS)
        for image, at in self._tiles:
            sheet.paste(image, at)
        write_atomically(path, lambda file: sheet.save(file, format="PNG", optimize=True))


def _ranked(rows: Sequence[NeuronRow]) -> list[NeuronRow]:
    """Order rows by falling score; leave out those without."""
    scored = [(-row.score, row.neuron, row) for row in rows if row.score is not None]
    return [row for _, _, row in sorted(scored, key=lambda item: item[:2])]


def _groups(row: NeuronRow, tiles: int) -> list[Group]:
    """Choose the images of a neuron: cluster and its pictures, the strongest cluster first."""
    order = np.argsort(-row.cluster_weight, kind="stable")[:tiles]
    members = [np.flatnonzero(row.label == cluster) for cluster in order]
    present = [(c, m) for c, m in zip(order.tolist(), members, strict=True) if len(m)]
    places = [1] * len(present)
    for _ in range(tiles - len(places)):
        # The next place goes to the cluster that is furthest below its share.
        claims = [
            row.cluster_weight[c] / (place + 0.5) if place < len(m) else -1.0
            for (c, m), place in zip(present, places, strict=True)
        ]
        if not claims or max(claims) < 0:
            break
        places[int(np.argmax(claims))] += 1
    chosen = []
    for (cluster, member), place in zip(present, places, strict=True):
        best = member[np.argsort(-row.activation[member], kind="stable")][:place]
        chosen.append((cluster, [row.image[i] for i in best.tolist()]))
    return chosen


def _draw_caption(sheet: _Sheet, row: NeuronRow, y: int) -> None:
    """Write a neuron's name, score and number of clusters."""
    for i, line in enumerate(_name_lines(row.neuron)):
        sheet.text((_MARGIN, y + 2 + 20 * i), line, 17, _INK)
    y += 20 * len(_name_lines(row.neuron))
    sheet.text((_MARGIN, y + 3), f"{row.score:.2f}", 36, _INK)
    if row.score_low is not None and row.score_high is not None:
        sheet.text(
            (_MARGIN + 84, y + 22), f"{row.score_low:.2f} - {row.score_high:.2f}", 14, _FAINT
        )
    clusters = f"{row.k} cluster" + ("s" if row.k != 1 else "")
    sheet.text((_MARGIN, y + 48), f"{clusters} in {row.num_images} images", 14, _FAINT)


def _name_lines(name: str) -> list[str]:
    """Break a long name in two, if it can be behind a mark, and cut one that is longer still."""
    if len(name) <= _NAME_LENGTH:
        return [name]
    marks = [i + 1 for i in range(_NAME_LENGTH // 2, _NAME_LENGTH) if name[i] in ".,:(/"]
    end = marks[-1] if marks else _NAME_LENGTH
    first, rest = name[:end], name[end:].strip()
    return [first, rest if len(rest) <= _NAME_LENGTH else f"…{rest[1 - _NAME_LENGTH :]}"]


def _draw_strip(
    sheet: _Sheet, row: NeuronRow, groups: Sequence[Group], tile: int, at: tuple[int, int]
) -> None:
    """Draw the clusters of a neuron from left to right."""
    x, y = at[0] + _BORDER, at[1]
    for i, (cluster, pictures) in enumerate(groups):
        colour = PALETTE[i % len(PALETTE)]
        left, right = x - _BORDER, x + len(pictures) * (tile + _TILE_GAP) - _TILE_GAP + _BORDER
        bottom = y + tile + 2 * _BORDER
        sheet.frame((left, y, right, bottom), colour, _FRAME, fill=_tint(colour))
        for picture in pictures:
            sheet.picture((x, y + _BORDER), picture, tile)
            x += tile + _TILE_GAP
        sheet.text((left + 2, bottom + 4), f"{row.cluster_weight[cluster]:.0%}", 13, _FAINT)


def _tint(colour: str) -> tuple[int, ...]:
    """Mix a colour with the white of the card."""
    return tuple(round(255 - 0.2 * (255 - value)) for value in ImageColor.getrgb(colour)[:3])
