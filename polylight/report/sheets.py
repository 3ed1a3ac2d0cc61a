"""A neuron's images as two JPEG files: all of them on a sheet, and a few in a row."""

import io
import math
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageOps

from polylight.errors import InputError

_QUALITY = 90
# Beyond it a sheet of 64 images would take several MB.
_LARGEST_TILE = 224
_MOST_COLUMNS = 8
# The last chunk of a PNG file, without its checksum.
_END = b"\0\0\0\0IEND"
# Around an image that is not square.
_MARGIN = (128, 128, 128)


class Sheet(NamedTuple):
    """Images side by side in rows."""

    jpeg: bytes
    columns: int
    tile: int
    """Side of an image's place, in pixels."""


def read_pictures(files: Sequence[bytes], neuron: str) -> list[Image.Image]:
    """Decode the images of a neuron.

    Args:
        files: PNG files.
        neuron: The neuron, for the error.

    Returns:
        RGB images, each of its own size.

    Raises:
        InputError: If one of them is damaged.
    """
    pictures = []
    for index, file in enumerate(files):
        try:
            # WeasyPrint lets PIL take a file that breaks off for a whole one, in all the process.
            if file[-12:-4] != _END:
                raise ValueError("the file breaks off")
            pictures.append(Image.open(io.BytesIO(file), formats=["PNG"]).convert("RGB"))
        except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
            raise InputError(
                f"image {index} of neuron {neuron} is no readable PNG file; delete the part of "
                "the run that holds it and run the same fit again: its neurons are made anew"
            ) from error
    return pictures


def draw_sheet(pictures: Sequence[Image.Image]) -> Sheet:
    """Lay images out in rows, in their order, as nearly square as 8 columns allow.

    A tile has the side of the largest image, 224 pixels at most; smaller images are enlarged.

    Args:
        pictures: RGB images of any sizes, at least one.

    Returns:
        The sheet: of high quality, without chroma subsampling.
    """
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(pictures))))
    tile = min(_LARGEST_TILE, max(max(picture.size) for picture in pictures))
    return Sheet(_tiled(pictures, columns, tile, subsampling=0), columns, tile)


def draw_strip(pictures: Sequence[Image.Image], side: int) -> bytes:
    """Lay images out in one row.

    Args:
        pictures: RGB images of any sizes, at least one.
        side: Side of a tile, in pixels, > 0.

    Returns:
        A JPEG file, ``side`` pixels high.
    """
    return _tiled(pictures, len(pictures), side, subsampling=2)


def _tiled(pictures: Sequence[Image.Image], columns: int, tile: int, *, subsampling: int) -> bytes:
    """Draw images as large as they fit in square tiles."""
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * tile, rows * tile), _MARGIN)
    for place, picture in enumerate(pictures):
        fitted = picture
        if picture.size != (tile, tile):
            fitted = ImageOps.pad(picture, (tile, tile), Image.Resampling.LANCZOS, _MARGIN)
        sheet.paste(fitted, (place % columns * tile, place // columns * tile))
    buffer = io.BytesIO()
    # With its tables optimised, PIL's buffer is too small for pictures of much grain.
    sheet.save(buffer, format="JPEG", quality=_QUALITY, subsampling=subsampling)
    return buffer.getvalue()
