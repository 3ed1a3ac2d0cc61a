"""CPU kernel of :mod:`polylight.kernels.inverted_residual`: an image at a time, kept in the cache.

What a block makes inside is several times as large as what goes in and comes out. Here no more of
it exists than some rows of some channels. For the way back a bit of each value is kept, whether its
rectifier let it through: with frozen weights the gradient to the input needs nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from polylight.kernels.inverted_residual_layout import Chain
from polylight.kernels.inverted_residual_loops import run_backward, run_forward
from polylight.kernels.teams import deal_out


def inverted_residuals(x: Tensor, chain: Chain) -> Tensor:
    """See :func:`polylight.kernels.inverted_residual.inverted_residuals`."""
    found: Tensor = _Run.apply(x, chain)
    return found


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: Chain) -> Tensor:
        out = _empty(len(x), chain.out_shape)
        bits = torch.empty(len(x), chain.num_bits, dtype=torch.int16)
        given, made, flags = _rows(x), _rows(out), bits.numpy()
        tables = chain.plans, chain.highs, chain.weights, chain.taps
        _deal_out(chain, run_forward, tables, given, made, flags)
        ctx.chain, ctx.bits = chain, bits
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        chain = ctx.chain
        pulled = _empty(len(grad), chain.in_shape)
        given, made, flags = _rows(grad), _rows(pulled), ctx.bits.numpy()
        tables = chain.plans, chain.weights, chain.taps, chain.phases
        _deal_out(chain, run_backward, tables, given, made, flags)
        return pulled, None


def _deal_out(
    chain: Chain, loop: Callable[..., None], tables: Sequence[Any], *rows: NDArray[Any]
) -> None:
    """Let each thread run a loop on some of the images, in memory of its own."""

    def run(start: int, stop: int) -> None:
        with chain.room() as room:
            loop(*tables, *(part[start:stop] for part in rows), *room)

    deal_out(len(rows[0]), run)


def _empty(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.empty(count, *shape, memory_format=torch.channels_last)


def _rows(maps: Tensor) -> NDArray[np.float32]:
    """The images of [B, C, H, W], one a row, channels last; their own memory where they lie so."""
    last = maps.detach().permute(0, 2, 3, 1).contiguous()
    rows: NDArray[np.float32] = last.view(len(maps), -1).numpy()
    return rows
