"""Affine sampling and normalisation of images, by torch's own operations."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample(
    images: Tensor, maps: Tensor, canvas: int, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """Sample every image bilinearly through its own affine map, grey outside, and normalise.

    With (x, y) = maps (u, v, 1), and all of them in units of half a side as ``affine_grid`` has
    them: result(u, v) = (bilinear(images - 0.5, x, y) + 0.5 - mean) / std, zero outside.

    Args:
        images: float32 [B, C, H, W] in [0, 1].
        maps: float32 [B, 2, 3], from canvas to image coordinates; no gradient goes to them.
        canvas: Side of the result in pixels, > 0.
        mean: float32 [C], in units of the images.
        std: float32 [C], likewise, > 0.
        dtype: Of the result: float32, bfloat16 or float16.

    Returns:
        [B, C, canvas, canvas] in channels-last memory format.
    """
    # Autocast would round the coordinates to bfloat16, that is to whole pixels and more.
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(
            maps.detach(), [*images.shape[:2], canvas, canvas], align_corners=False
        )
        # Zero padding of the centred image is a grey border.
        moved = F.grid_sample(images - 0.5, grid, mode="bilinear", align_corners=False) + 0.5
    normal = (moved - mean[:, None, None]) / std[:, None, None]
    return normal.to(dtype, memory_format=torch.channels_last)


def in_threes(images: Tensor, mean: Tensor, std: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Split channels into groups of three, for kernels that know no other number.

    Args:
        images: [B, C, H, W] of any C > 0.
        mean: float32 [C].
        std: float32 [C].

    Returns:
        Images, mean and std of each group, the last filled up.
    """
    missing = -images.shape[1] % 3
    parts = (
        torch.split(F.pad(images, (0, 0, 0, 0, 0, missing)), 3, 1),
        torch.split(F.pad(mean, (0, missing)), 3),
        torch.split(F.pad(std, (0, missing), value=1.0), 3),
    )
    return list(zip(*parts, strict=True))
