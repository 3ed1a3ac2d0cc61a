"""The images of a neuron as a grid, a row for each cluster."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from polylight.inspect.palette import PALETTE
from polylight.run.schema import NeuronRow

Picture = npt.NDArray[np.uint8]

# Of the row of images that are not valid.
_GREY = "#8c959f"
_FRAME, _GAP = 4, 6


def cluster_grid(
    row: NeuronRow, pictures: Sequence[Picture], columns: int = 8, side: int = 80
) -> Picture:
    """Draw a neuron's images: a row for each cluster, the strongest on top, then those in none.

    Every row has a frame of its cluster's colour, which is that of the run's own picture; the
    images of highest activation come first.

    Args:
        row: A neuron with at least one image.
        pictures: Its images, uint8 [H, W, 3] each.
        columns: Most images of a row, > 0.
        side: Side of an image in the grid, pixels, > 0.

    Returns:
        uint8 [H, W, 3], on white.
    """
    strongest = np.argsort(-row.cluster_weight, kind="stable").tolist()
    colours = {c: PALETTE[i % len(PALETTE)] for i, c in enumerate(strongest)}
    members = [(c, np.flatnonzero(row.label == c)) for c in [*strongest, -1]]
    strips = [
        _strip(row, pictures, member, colours.get(cluster, _GREY), columns, side)
        for cluster, member in members
        if len(member)
    ]
    width = max(strip.shape[1] for strip in strips)
    height = sum(len(strip) + _GAP for strip in strips) - _GAP
    grid = np.full((height, width, 3), 255, dtype=np.uint8)
    top = 0
    for strip in strips:
        grid[top : top + len(strip), : strip.shape[1]] = strip
        top += len(strip) + _GAP
    return grid


def thumbnail(picture: Picture, side: int) -> Picture:
    """Reduce a picture: uint8 [side, side, 3]."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))


def _strip(
    row: NeuronRow,
    pictures: Sequence[Picture],
    member: npt.NDArray[np.intp],
    colour: str,
    columns: int,
    side: int,
) -> Picture:
    """Draw the best images of a cluster side by side in a frame: uint8 [H, W, 3]."""
    best = member[np.argsort(-row.activation[member], kind="stable")][:columns]
    pitch = side + _FRAME
    strip = np.empty((pitch + _FRAME, pitch * len(best) + _FRAME, 3), dtype=np.uint8)
    strip[:] = ImageColor.getrgb(colour)[:3]
    for place, image in enumerate(best.tolist()):
        left = _FRAME + place * pitch
        strip[_FRAME : _FRAME + side, left : left + side] = thumbnail(pictures[image], side)
    return strip
