"""Random numbers that depend on a key and a counter alone.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). A slot of the
pool draws with its own key, so what it draws does not depend on which other slots exist.
"""

import hashlib
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def stream_key(*parts: object) -> int:
    """Hash the identity of a random stream to a key.

    Args:
        parts: What the stream belongs to, such as run seed, neuron and image index; their text
            counts.

    Returns:
        A signed 64-bit integer, the same on every machine.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _philox(key: Tensor, counter: Tensor, blocks: int) -> Tensor:
    """Four 32-bit words for each of ``blocks`` sub-counters: int64 [B, blocks, 4]."""
    block = torch.arange(blocks, device=key.device)
    shape = (key.shape[0], blocks)
    # int64 products wrap modulo 2**64, so both 32-bit halves of each product come out exact.
    c0 = (counter & _MASK)[:, None].expand(shape)
    c1 = ((counter >> 32) & _MASK)[:, None].expand(shape)
    c2 = block.expand(shape)
    c3 = torch.zeros_like(c2)
    k0, k1 = (key & _MASK)[:, None], ((key >> 32) & _MASK)[:, None]
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def philox_uniform(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """Draw uniform numbers in (0, 1), a pure function of key, counter and position.

    Args:
        key: int64 [B], one stream a row (:func:`stream_key`).
        counter: int64 [B], which draw of the stream; the step, say.
        num: Numbers a row, > 0.

    Returns:
        float32 [B, num], odd multiples of 2**-24: never 0 and never 1.
    """
    words = _philox(key, counter, -(-num // 4)).flatten(1)[:, :num]
    # 23 bits and a half fit a float32 exactly.
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def philox_normal(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """Draw standard normal numbers by the Box-Muller transform.

    Args:
        key: int64 [B], one stream a row.
        counter: int64 [B], which draw of the stream.
        num: Numbers a row, > 0.

    Returns:
        float32 [B, num], mean 0, variance 1.
    """
    return box_muller(philox_uniform(key, counter, 2 * (-(-num // 2))), num)


def box_muller(uniform: Tensor, num: int) -> Tensor:
    """Turn uniform into standard normal numbers: sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v).

    Args:
        uniform: float32 [B, 2 P] in (0, 1); the first half holds u, the second v.
        num: Numbers a row to keep, <= 2 P.

    Returns:
        float32 [B, num].
    """
    # The halves, not neighbours, are paired: slices instead of strided reads.
    u, v = uniform.chunk(2, dim=1)
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), (2.0 * math.pi) * v
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :num]
