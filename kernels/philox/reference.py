"""Philox4x32-10 one number at a time, in Python's integers, which never wrap by themselves."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 2**32 - 1
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Encrypt four words of a counter with two words of a key (Salmon et al. 2011, section 4.3).

    Args:
        counter: Four unsigned 32-bit integers.
        key: Two.

    Returns:
        Four.
    """
    c, k = list(counter), list(key)
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c[0], MULTIPLIERS[1] * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + WEYL[0]) & MASK, (k[1] + WEYL[1]) & MASK]
    return c


def philox_uniform(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """Draw uniform numbers in (0, 1), a pure function of key, counter and position.

    The third word of the counter counts blocks of four numbers; the fourth is 0.

    Args:
        key: int64 [B], one stream a row (:func:`polylight.kernels.stream_key`).
        counter: int64 [B], which draw of the stream; the step, say.
        num: Numbers a row, > 0.

    Returns:
        float32 [B, num], odd multiples of 2**-24: never 0 and never 1.
    """
    drawn = torch.empty(len(key), num)
    for row, (k, c) in enumerate(zip(key.tolist(), counter.tolist(), strict=True)):
        for i in range(num):
            words = philox4x32((c & MASK, c >> 32 & MASK, i // 4, 0), (k & MASK, k >> 32 & MASK))
            # 23 bits and a half fit a float32 exactly.
            drawn[row, i] = ((words[i % 4] >> 9) + 0.5) / 2**23
    return drawn


def philox_normal(key: Tensor, counter: Tensor, num: int) -> Tensor:
    """Draw standard normal numbers by the Box-Muller transform.

    Of an even number of uniform ones the first half is u, the second v; the first half of the
    result is sqrt(-2 ln u) cos(2 pi v), the second the same with the sine.

    Args:
        key: int64 [B], one stream a row.
        counter: int64 [B], which draw of the stream.
        num: Numbers a row, > 0.

    Returns:
        float32 [B, num], mean 0, variance 1.
    """
    pairs = -(-num // 2)
    uniform = philox_uniform(key, counter, 2 * pairs)
    drawn = torch.empty(len(key), 2 * pairs)
    for row, numbers in enumerate(uniform.tolist()):
        for i, (u, v) in enumerate(zip(numbers[:pairs], numbers[pairs:], strict=True)):
            radius, angle = math.sqrt(-2.0 * math.log(u)), 2.0 * math.pi * v
            drawn[row, i] = radius * math.cos(angle)
            drawn[row, pairs + i] = radius * math.sin(angle)
    return drawn[:, :num]
