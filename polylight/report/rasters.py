"""Pictures for paper, drawn pixel by pixel: the images of a neuron, their map and similarity."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from polylight.report.charts import PALETTE
from polylight.report.content import NeuronDetail

NO_VOTE = "#9aa1a9"
"""Colour of the images that are not valid."""

# Enough for 300 dots an inch where tiles are largest.
_MOST_PIXELS, _QUALITY = 200, 90
_MATRIX_PIXELS = 400
_MAP_PIXELS, _SPOT_PIXELS, _BORDER_PIXELS = 480, 84, 7
_MAP_GROUND = "#f4f5f7"
# Red, green and blue of cosines: the colours that charts have, viridis.
_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
_RAMP = ((68, 59, 33, 94, 253), (1, 82, 145, 201, 231), (84, 139, 140, 98, 37))


def colour(number: int) -> str:
    """Choose the colour of a cluster by its number; of invalid images for 0."""
    return PALETTE[(number - 1) % len(PALETTE)] if number else NO_VOTE


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
            tile.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
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


def heat_map(similarity: npt.NDArray[np.float64], sizes: Sequence[int]) -> bytes:
    """Draw how similar images are, with a gap between clusters.

    A chart of as many marks would take longer than all else on the page.

    Args:
        similarity: [N, N], cosines; what is below 0 looks like 0, and NaN is left blank.
        sizes: How many of the images, in their order, are of each cluster; sum N.

    Returns:
        A PNG file.
    """
    cell = max(1, _MATRIX_PIXELS // len(similarity))
    ends = np.cumsum(sizes)[:-1]
    # The image that each pixel of a side belongs to; none in a gap.
    owner = np.insert(np.arange(len(similarity)), ends, -1)
    owner = np.repeat(owner, np.where(owner < 0, max(1, cell // 3), cell))
    value = similarity[owner][:, owner]
    colour = np.stack([np.interp(value, _STOPS, channel) for channel in _RAMP], -1)
    colour[(owner < 0)[:, None] | (owner < 0) | np.isnan(value)] = 255
    return _file(Image.fromarray(colour.astype(np.uint8)), "PNG")


def _file(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()
