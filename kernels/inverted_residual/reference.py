"""Inverted residual blocks in plain torch, a convolution after the other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Block(NamedTuple):
    """One block: expand, rectify, filter each channel, rectify, project."""

    expand: tuple[Tensor, Tensor] | None
    """Weight float32 [E, C] and bias [E] of the first pointwise convolution; None without one."""
    taps: Tensor
    """float32 [E, kernel height, kernel width], of the depthwise convolution."""
    bias: Tensor
    """float32 [E], of the depthwise convolution."""
    project: tuple[Tensor, Tensor]
    """Weight float32 [D, E] and bias [D] of the last pointwise convolution."""
    highs: tuple[float, float]
    """Upper bounds of the two rectifiers, > 0, the lower ones being 0; infinity for none."""
    stride: int
    """Of the depthwise convolution."""
    padding: tuple[int, int]
    """Zeros around its input, above and below, left and right."""
    is_residual: bool
    """Whether the input is added to the result, which then has its shape."""

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result."""
        sides = zip((height, width), self.padding, self.taps.shape[1:], strict=True)
        tall, wide = ((side + 2 * pad - taps) // self.stride + 1 for side, pad, taps in sides)
        return tall, wide


def inverted_residuals(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Run blocks one after the other.

    Args:
        x: float32 [B, C, H, W].
        blocks: At least one, each fitting the one before.

    Returns:
        float32 [B, D, H', W'], D channels of the last block.
    """
    for block in blocks:
        x = _run(x, block)
    return x


def _run(x: Tensor, block: Block) -> Tensor:
    inner = x
    if block.expand is not None:
        weight, bias = block.expand
        inner = F.conv2d(x, weight[:, :, None, None], bias).clamp(0.0, block.highs[0])
    taps = block.taps[:, None]
    inner = F.conv2d(inner, taps, block.bias, block.stride, block.padding, groups=len(taps))
    weight, bias = block.project
    out = F.conv2d(inner.clamp(0.0, block.highs[1]), weight[:, :, None, None], bias)
    return out + x if block.is_residual else out
