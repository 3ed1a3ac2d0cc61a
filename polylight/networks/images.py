"""Images as networks see them, of any number of channels, and as pictures, which are RGB."""

import colorsys

import torch
from torch import Tensor

from polylight.errors import InputError

# Of red, green and blue in the luma of a colour (ITU-R BT.601).
_RED, _BLUE = 0.299, 0.114


def crop(images: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Cut out the middle of square images.

    Args:
        images: [..., H, H].
        window: Height and width of the middle, in pixels; None for all.

    Returns:
        [..., height, width].
    """
    if window is None:
        return images
    (height, width), side = window, images.shape[-1]
    top, left = (side - height) // 2, (side - width) // 2
    return images[..., top : top + height, left : left + width]


def picture(images: Tensor) -> Tensor:
    """Show what a network sees as colours.

    RGB is itself, and one channel is grey. Of another number n, channel i has the hue i / n of the
    colour circle (two channels are red and cyan), and each of red, green and blue is the mean of
    the channels weighted by how much of it their hues have. So grey is where all are equal.

    Args:
        images: Float [..., n, H, W] in [0, 1], or uint8.

    Returns:
        [..., 3, H, W] of the same type.
    """
    count = images.shape[-3]
    if count == 3:
        return images
    if count == 1:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    values = images if images.is_floating_point() else images.float()
    mixed = torch.einsum("rn,...nhw->...rhw", _hues(count).to(values), values)
    return mixed if images.is_floating_point() else mixed.round().to(images.dtype)


def from_picture(pictures: Tensor, channels: int) -> Tensor:
    """Turn pictures into what a network sees.

    Args:
        pictures: Float [..., 3, H, W] in [0, 1].
        channels: Channels of the network's images.

    Returns:
        The pictures themselves for 3 channels; their luma for one.

    Raises:
        InputError: If the network sees another number of channels, which colours do not tell.
    """
    if channels == 3:
        return pictures
    if channels != 1:
        raise InputError(
            f"the network sees {channels} channels, and a picture's colours do not tell them. "
            "Pictures can be shown to networks of 1 or 3 channels."
        )
    red, green, blue = pictures.unbind(-3)
    # As offsets from green, so that a grey stays what it is to the bit.
    return (green + _RED * (red - green) + _BLUE * (blue - green)).unsqueeze(-3)


def _hues(count: int) -> Tensor:
    """Weight of each channel in red, green and blue: float32 [3, count], of sum 1 over channels."""
    hues = torch.tensor([colorsys.hsv_to_rgb(i / count, 1.0, 1.0) for i in range(count)]).T
    return hues / hues.sum(1, keepdim=True)
