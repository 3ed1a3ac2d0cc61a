"""A neuron's images as two JPEG files: all of them on a sheet, and a few in a row."""

import io
import math
import struct
import tempfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

_QUALITY = 90
# Beyond it a sheet of 64 images would take several MB.
_LARGEST_TILE = 224
_MOST_COLUMNS = 8
# Bytes before the first chunk of a PNG file, and the name of its last.
_SIGNATURE, _END = 8, b"IEND"
# Around an image that is not square.
_MARGIN = (128, 128, 128)
# Strokes through the place of an image that cannot be read, and that place's side where no image
# has a size.
_CROSS = (200, 200, 200)
_CROSSED_TILE = 128


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
        RGB images, each of its own size; None for a file that is damaged.
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


def _read(file: bytes) -> Image.Image | None:
    """Decode a PNG file; None if it is damaged."""
    if not _is_whole(file):
        return None
    try:
        return Image.open(io.BytesIO(file), formats=["PNG"]).convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error):
        return None


def _is_whole(file: bytes) -> bool:
    """Tell by their checksums whether the chunks of a PNG file are all there and undamaged.

    PIL checks some of them only.
    """
    view, at = memoryview(file), _SIGNATURE
    while at + 12 <= len(file):
        # Length, kind, content, checksum of the kind and the content.
        end = at + 12 + int.from_bytes(view[at : at + 4])
        if end > len(file) or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end]
        ):
            return False
        if view[at + 4 : at + 8] == _END:
            return True
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
