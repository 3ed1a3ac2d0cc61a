"""Pictures drawn pixel by pixel: a neuron's images on a sheet, their map and their similarity."""

import io
import math
import struct
import tempfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

from polylight.inspect.palette import PALETTE as FIRST_COLOURS
from polylight.report.content import NeuronDetail

PALETTE = (*FIRST_COLOURS, "#882255")
"""Colours of clusters on a neuron's own page, and of runs, told apart by colour-blind readers;
wine, of Tol's "muted" scheme, where those of Okabe and Ito end."""

NOT_VALID = "#9aa1a9"
"""Colour of the images that are not valid."""

MOST_PIXELS = 4096 * 4096
"""Pixels of the largest image that is decoded; what is larger counts as damaged."""

_QUALITY = 90
# Beyond it a sheet of 64 images would take several MB.
_LARGEST_TILE = 224
_MOST_COLUMNS = 8
# Of a PNG file: what it begins with, where its width and height stand, and its last chunk.
_SIGNATURE, _SIZE, _END = b"\x89PNG\r\n\x1a\n", slice(16, 24), b"IEND"
# Around an image that is not square.
_MARGIN = (128, 128, 128)
# Strokes through the place of an image that cannot be read, and that place's side where no image
# has a size.
_CROSS = (200, 200, 200)
_CROSSED_TILE = 128
# On paper, enough for 300 dots an inch where tiles are largest.
_PAPER_PIXELS = 200
_MATRIX_PIXELS = 400
_MAP_PIXELS, _SPOT_PIXELS, _BORDER_PIXELS = 480, 84, 7
_MAP_GROUND = "#f4f5f7"
# Red, green and blue of cosines: viridis.
_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_RAMP = ((68, 59, 33, 94, 253), (1, 82, 145, 201, 231), (84, 139, 140, 98, 37))


class Sheet(NamedTuple):
    """Images side by side in rows."""

    jpeg: bytes
    columns: int
    tile: int
    """Side of an image's place, in pixels."""


def read_pictures(files: Sequence[bytes]) -> list[Image.Image | None]:
    """Decode the images of a neuron.

    Args:
        files: PNG files.

    Returns:
        RGB images, each of its own size up to that of a tile; None for a file that is damaged or
        has more than ``MOST_PIXELS``.
    """
    return [_read(file) for file in files]


def draw_sheet(pictures: Sequence[Image.Image | None]) -> Sheet:
    """Lay images out in rows, in their order, as nearly square as 8 columns allow.

    A tile has the side of the largest image, 224 pixels at most; smaller images are enlarged.

    Args:
        pictures: RGB images of any sizes, None where a crossed tile is to stand; at least one.

    Returns:
        The sheet: of high quality, without chroma subsampling.
    """
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(pictures))))
    sides = [max(picture.size) for picture in pictures if picture is not None]
    tile = min(_LARGEST_TILE, max(sides, default=_CROSSED_TILE))
    return Sheet(_tiled(pictures, columns, tile, subsampling=0), columns, tile)


def draw_strip(pictures: Sequence[Image.Image | None], side: int) -> bytes:
    """Lay images out in one row.

    Args:
        pictures: As for :func:`draw_sheet`.
        side: Side of a tile, in pixels, > 0.

    Returns:
        A JPEG file, ``side`` pixels high.
    """
    return _tiled(pictures, len(pictures), side, subsampling=2)


def colour(number: int) -> str:
    """Choose the colour of a cluster by its number; of invalid images for 0."""
    return PALETTE[(number - 1) % len(PALETTE)] if number else NOT_VALID


def cut(detail: NeuronDetail) -> list[Image.Image]:
    """Cut the pictures out of a neuron's sheet.

    Each becomes a file of its own, since a viewer would decode a whole sheet anew for every part
    of it that is shown.

    Args:
        detail: The neuron.

    Returns:
        The pictures in the order of ``detail.pictures``, reduced to what can be seen on paper.
    """
    if not detail.sheet:
        return []
    tiles = []
    with Image.open(io.BytesIO(detail.sheet)) as sheet:
        for picture in detail.pictures:
            row, column = divmod(picture.tile, detail.columns)
            left, top = column * detail.tile, row * detail.tile
            tile = sheet.crop((left, top, left + detail.tile, top + detail.tile))
            tile.thumbnail((_PAPER_PIXELS, _PAPER_PIXELS))
            tiles.append(tile)
    return tiles


def to_jpeg(image: Image.Image) -> bytes:
    """Write a picture as a JPEG file."""
    return _file(image, "JPEG", quality=_QUALITY, subsampling=0)


def image_map(detail: NeuronDetail, tiles: Sequence[Image.Image]) -> bytes:
    """Draw the images at their places, those of the strongest cluster on top.

    Args:
        detail: The neuron; has places in [0, 1].
        tiles: Its pictures, in their order.

    Returns:
        A JPEG file; each image has a frame of its cluster's colour.
    """
    canvas = Image.new("RGB", (_MAP_PIXELS, _MAP_PIXELS), _MAP_GROUND)
    room, inner = _MAP_PIXELS - _SPOT_PIXELS, _SPOT_PIXELS - 2 * _BORDER_PIXELS
    number = [cluster.number for cluster in detail.clusters for _ in cluster.pictures]
    for cluster, picture, tile in reversed(list(zip(number, detail.pictures, tiles, strict=True))):
        spot = Image.new("RGB", (_SPOT_PIXELS, _SPOT_PIXELS), colour(cluster))
        spot.paste(tile.resize((inner, inner)), (_BORDER_PIXELS, _BORDER_PIXELS))
        canvas.paste(spot, (round(picture.x * room), round(picture.y * room)))
    return to_jpeg(canvas)


def heat_map(
    similarity: npt.NDArray[np.float64], sizes: Sequence[int], cell: int | None = None
) -> bytes:
    """Draw how similar images are, with a gap between clusters.

    A chart of as many marks would take longer than all else on the page.

    Args:
        similarity: [N, N], cosines; what is below 0 looks like 0.
        sizes: How many of the images, in their order, are of each cluster; sum N.
        cell: Pixels of a cosine's side; None for what paper can show.

    Returns:
        A PNG file, transparent in the gaps and where a cosine is NaN.
    """
    owner = _owners(sizes, cell)
    # One row and one column more, the last, are those of the gaps.
    cells = np.zeros((len(similarity) + 1, len(similarity) + 1, 4), np.uint8)
    known = ~np.isnan(similarity)
    channels = [np.interp(similarity, _STOPS, channel) for channel in _RAMP]
    cells[:-1, :-1][known] = np.stack([*channels, np.full_like(similarity, 255)], -1)[known]
    return _file(Image.fromarray(cells[owner][:, owner]), "PNG", compress_level=1)


def heat_map_bands(sizes: Sequence[int], cell: int | None = None) -> list[tuple[float, float]]:
    """Find where each cluster is on the side of :func:`heat_map`: start and length, in [0, 1]."""
    owner = _owners(sizes, cell)
    ends = np.cumsum(sizes)
    bands = []
    for size, end in zip(sizes, ends.tolist(), strict=True):
        places = np.flatnonzero((owner >= end - size) & (owner < end))
        bands.append((float(places[0]) / len(owner), len(places) / len(owner)))
    return bands


def _owners(sizes: Sequence[int], cell: int | None) -> npt.NDArray[np.int64]:
    """Give each pixel on a side of a heat map the image that it belongs to; -1 in a gap."""
    count, ends = sum(sizes), np.cumsum(sizes)[:-1]
    cell = cell or max(1, _MATRIX_PIXELS // max(count, 1))
    owner = np.insert(np.arange(count), ends, -1)
    return np.repeat(owner, np.where(owner < 0, max(1, cell // 3), cell))


def _read(file: bytes) -> Image.Image | None:
    """Decode a PNG file; None if it is damaged or too large."""
    # The size is read before PIL makes anything of it: a few bytes may stand for gigabytes.
    if not _is_whole(file) or math.prod(struct.unpack(">II", file[_SIZE])) > MOST_PIXELS:
        return None
    try:
        image = Image.open(io.BytesIO(file), formats=["PNG"]).convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error):
        return None
    # All of a neuron are in memory at once, and none is shown larger.
    image.thumbnail((_LARGEST_TILE, _LARGEST_TILE), Image.Resampling.LANCZOS)
    return image


def _is_whole(file: bytes) -> bool:
    """Tell by their checksums whether the chunks of a PNG file are all there and undamaged.

    PIL checks some of them only.
    """
    if not file.startswith(_SIGNATURE):
        return False
    view, at = memoryview(file), len(_SIGNATURE)
    while at + 12 <= len(file):
        # Length, kind, content, checksum of the kind and the content.
        end = at + 12 + int.from_bytes(view[at : at + 4])
        if end > len(file) or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end]
        ):
            return False
        if view[at + 4 : at + 8] == _END:
            return end >= _SIZE.stop
        at = end
    return False


def _tiled(
    pictures: Sequence[Image.Image | None], columns: int, tile: int, *, subsampling: int
) -> bytes:
    """Draw images as large as they fit in square tiles."""
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * tile, rows * tile), _MARGIN)
    for place, picture in enumerate(pictures):
        left, top = place % columns * tile, place // columns * tile
        if picture is None:
            _cross_out(sheet, left, top, tile)
        elif picture.size == (tile, tile):
            sheet.paste(picture, (left, top))
        else:
            fitted = ImageOps.pad(picture, (tile, tile), Image.Resampling.LANCZOS, _MARGIN)
            sheet.paste(fitted, (left, top))
    # PIL holds up all other threads while it encodes, unless into a file of the system.
    with tempfile.TemporaryFile() as file:
        # With its tables optimised, PIL's buffer is too small for pictures of much grain.
        sheet.save(file, format="JPEG", quality=_QUALITY, subsampling=subsampling)
        file.seek(0)
        return file.read()


def _cross_out(sheet: Image.Image, left: int, top: int, tile: int) -> None:
    """Draw the place of an image that cannot be read."""
    draw = ImageDraw.Draw(sheet)
    right, bottom = left + tile - 1, top + tile - 1
    draw.line((left, top, right, bottom), _CROSS, max(1, tile // 32))
    draw.line((left, bottom, right, top), _CROSS, max(1, tile // 32))


def _file(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()
