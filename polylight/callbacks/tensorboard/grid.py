"""The images of a neuron as a grid, a row for each cluster."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw

from polylight.inspect.palette import PALETTE
from polylight.run.png import decode_png
from polylight.run.schema import NeuronRow

Picture = npt.NDArray[np.uint8]

_logger = logging.getLogger(__name__)
# Of the row of images that are not valid, and of the cross over what cannot be read.
_GREY = "#8c959f"
_FRAME, _GAP = 4, 6
_TILE = 80


def read_images(row: NeuronRow) -> list[Picture]:
    """Read the images of a neuron, uint8 [H, W, 3] each; a damaged one is a cross, and is named."""
    images = []
    for i, png in enumerate(row.image):
        try:
            images.append(decode_png(png))
        # A decoder raises whatever the damage leads it to.
        except Exception as error:
            _logger.warning("image %d of neuron %s is damaged: %s", i, row.neuron, error)
            images.append(_cross())
    return images


def cluster_grid(row: NeuronRow, images: Sequence[Picture], columns: int = 8) -> Picture:
    """Draw a neuron's images: a row for each cluster, the strongest on top, then those in none.

    Every row has a frame of its cluster's colour, which is that of the run's own picture; the
    images of highest activation come first.

    Args:
        row: A neuron with at least one image.
        images: Its images, uint8 [H, W, 3] each.
        columns: Most images of a row, > 0.

    Returns:
        uint8 [H, W, 3], on white.
    """
    strongest = np.argsort(-row.cluster_weight, kind="stable").tolist()
    colours = {c: PALETTE[i % len(PALETTE)] for i, c in enumerate(strongest)}
    strips = []
    for cluster in [*strongest, -1]:
        members = np.flatnonzero(row.label == cluster)
        best = members[np.argsort(-row.activation[members], kind="stable")][:columns]
        if len(best):
            strips.append(_strip([images[i] for i in best], colours.get(cluster, _GREY)))
    width = max(strip.shape[1] for strip in strips)
    strips = [
        np.pad(strip, ((0, _GAP), (0, width - strip.shape[1]), (0, 0)), constant_values=255)
        for strip in strips
    ]
    return np.concatenate(strips)[:-_GAP]


def thumbnail(image: Picture, side: int) -> Picture:
    """Bring an image to a size: uint8 [side, side, 3]."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def _strip(images: Sequence[Picture], colour: str) -> Picture:
    """Draw images side by side in a frame: uint8 [H, W, 3]."""
    pitch = _TILE + _FRAME
    strip = np.empty((pitch + _FRAME, pitch * len(images) + _FRAME, 3), dtype=np.uint8)
    strip[:] = ImageColor.getrgb(colour)[:3]
    for place, image in enumerate(images):
        left = _FRAME + place * pitch
        strip[_FRAME:-_FRAME, left : left + _TILE] = thumbnail(image, _TILE)
    return strip


def _cross() -> Picture:
    """The tile of an image that cannot be read: grey diagonals on white."""
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    draw = ImageDraw.Draw(tile)
    draw.line((0, 0, _TILE, _TILE), _GREY, width=3)
    draw.line((0, _TILE, _TILE, 0), _GREY, width=3)
    return np.asarray(tile)
