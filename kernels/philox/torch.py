"""Philox4x32-10 in torch, all numbers at once; what runs wherever Triton does not."""

import math

import torch
from torch import Tensor

from polylight.kernels.philox.reference import MASK, MULTIPLIERS, ROUNDS, WEYL


def philox_uniform(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """See :func:`polylight.kernels.philox.reference.philox_uniform`; every bit is the same."""
    words = _words(key, counter, -(-num // 4)).flatten(1)[:, :num]
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def philox_normal(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """See :func:`polylight.kernels.philox.reference.philox_normal`; the same to rounding."""
    return box_muller(philox_uniform(key, counter, 2 * (-(-num // 2))), num)


def box_muller(uniform: Tensor, num: int) -> Tensor:
    """Turn uniform numbers float32 [B, 2 P] in (0, 1) into standard normal ones [B, num <= 2 P]."""
    # The halves, not neighbours, are paired: slices instead of strided reads.
    u, v = uniform.chunk(2, dim=1)
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), (2.0 * math.pi) * v
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :num]


def _words(key: Tensor, counter: Tensor, blocks: int) -> Tensor:
    """Four 32-bit words for each of ``blocks`` sub-counters: int64 [B, blocks, 4]."""
    block = torch.arange(blocks, device=key.device)
    shape = (key.shape[0], blocks)
    # int64 products wrap modulo 2**64, so both 32-bit halves of each product come out exact.
    c0 = (counter & MASK)[:, None].expand(shape)
    c1 = ((counter >> 32) & MASK)[:, None].expand(shape)
    c2 = block.expand(shape)
    c3 = torch.zeros_like(c2)
    k0, k1 = (key & MASK)[:, None], ((key >> 32) & MASK)[:, None]
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)
