"""Philox4x32-10 in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from polylight.kernels.launch import launch
from polylight.kernels.philox.torch import box_muller

_MOST_BLOCKS = 256  # of four numbers, to a program


@triton.jit
def _uniform_kernel(
    key_ptr: tl.tensor,
    counter_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num: tl.tensor,
    tiles: tl.tensor,
    BLOCKS: tl.constexpr,
) -> None:
    """Each program draws ``BLOCKS`` sub-counters of one row; the end of the row is masked."""
    row, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    key = tl.load(key_ptr + row)
    counter = tl.load(counter_ptr + row)
    block = (tile * BLOCKS + tl.arange(0, BLOCKS)).to(tl.uint32)
    zero = block * 0
    low, high = counter.to(tl.uint32) + zero, (counter >> 32).to(tl.uint32) + zero
    w0, w1, w2, w3 = tl.philox(key, low, high, block, zero)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    # 23 bits and a half fit a float32 exactly.
    uniform = ((words >> 9).to(tl.float32) + 0.5) * (2.0**-23)
    position = tile * (4 * BLOCKS) + tl.arange(0, 4 * BLOCKS)
    tl.store(out_ptr + row.to(tl.int64) * num + position, uniform, mask=position < num)


def philox_uniform(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """See :func:`polylight.kernels.philox.reference.philox_uniform`; every bit is the same."""
    key, counter = key.contiguous(), counter.contiguous()
    out = torch.empty(len(key), num, device=key.device)
    blocks = min(_MOST_BLOCKS, triton.next_power_of_2(triton.cdiv(num, 4)))
    tiles = triton.cdiv(num, 4 * blocks)
    launch(_uniform_kernel, tiles * len(key), key, counter, out, num, tiles, BLOCKS=blocks)
    return out


def philox_normal(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """See :func:`polylight.kernels.philox.reference.philox_normal`; the same to rounding.

    Every bit is that of torch on the same device, as the transform is torch's: Triton's logarithm
    and cosine round in another way.
    """
    return box_muller(philox_uniform(key, counter, 2 * (-(-num // 2))), num)
