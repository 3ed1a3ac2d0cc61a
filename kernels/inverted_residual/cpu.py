"""Inverted residual blocks on a CPU: an image at a time, which stays in the cache.

Inside a block the map is several times as large as its input and its result. It never exists as a
whole: only a few rows of a few channels do at any time. For the backward pass one bit of each value
is kept, whether its rectifier let it through; with frozen weights the gradient to the input needs
nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from polylight.kernels.inverted_residual.layout import Chain
from polylight.kernels.inverted_residual.loops import run_backward, run_forward
from polylight.kernels.openmp import parallel_for


def inverted_residuals(x: Tensor, chain: Chain) -> Tensor:
    """See :func:`polylight.kernels.inverted_residuals`; float32 on a CPU only."""
    found: Tensor = _Run.apply(x, chain)
    return found


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: Chain) -> Tensor:
        out = _empty(len(x), chain.out_shape)
        bits = torch.empty(len(x), chain.num_bits, dtype=torch.int16)
        given, made, flags = _rows(x), _rows(out), bits.numpy()
        tables = chain.plans, chain.highs, chain.weights, chain.taps
        _run_images(chain, run_forward, tables, given, made, flags)
        ctx.chain, ctx.bits = chain, bits
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        chain = ctx.chain
        gradient = _empty(len(grad), chain.in_shape)
        given, made, flags = _rows(grad), _rows(gradient), ctx.bits.numpy()
        tables = chain.plans, chain.weights, chain.taps, chain.phases
        _run_images(chain, run_backward, tables, given, made, flags)
        return gradient, None


def _run_images(
    chain: Chain, loop: Callable[..., None], tables: Sequence[Any], *rows: NDArray[Any]
) -> None:
    """Let each thread run a loop on some of the images, in memory of its own."""

    def run(start: int, stop: int) -> None:
        with chain.workspace() as memory:
            loop(*tables, *(part[start:stop] for part in rows), *memory)

    parallel_for(len(rows[0]), run)


def _empty(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.empty(count, *shape, memory_format=torch.channels_last)


def _rows(maps: Tensor) -> NDArray[np.float32]:
    """The images of [B, C, H, W], one a row, channels last; their own memory where they lie so."""
    last = maps.detach().permute(0, 2, 3, 1).contiguous()
    rows: NDArray[np.float32] = last.view(len(maps), -1).numpy()
    return rows
