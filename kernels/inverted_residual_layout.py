"""Inverted residual blocks laid out as the kernel of a CPU reads them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polylight.kernels.compiling import aligned
from polylight.kernels.inverted_residual import Block
from polylight.kernels.tiles_numba import VECTOR

AT_ONCE = 3
"""Vectors of inner channels that exist at once: a few rows of them stay in the first cache."""

_ROOMS: list[list[NDArray[Any]]] = []


class Plan(NamedTuple):
    """A block as integers: shapes, and where its numbers lie among all weights and all bits."""

    height: int
    width: int
    tall: int  # height and width of the result
    wide: int
    channels: int
    row: int  # channels, filled up to whole vectors
    vectors: int  # of the inner channels
    out_channels: int
    out_row: int
    reach: int  # height and width of the kernel
    across: int
    stride: int
    above: int  # padding
    before: int
    expands: int
    is_residual: int
    num_taps: int  # columns of the table of taps, from where on
    first_tap: int
    first_phase: int  # where in the table of phases those of this block are
    expand: int  # weights, each laid out as it is read
    expand_bias: int
    expand_back: int
    taps: int
    taps_bias: int
    project: int
    project_bias: int
    project_back: int
    bits: int  # of the first rectifier, and of the second
    more_bits: int
    zeros: int  # as many weights that are 0 as a row has numbers


class Chain:
    """Blocks laid out for the kernel.

    Args:
        blocks: At least one, each fitting the one before; on the CPU.
        height: Of the first one's input.
        width: Likewise.
    """

    def __init__(self, blocks: Sequence[Block], height: int, width: int) -> None:
        self._weights: list[Tensor] = []
        self._size = 0
        self._bits = 0
        self._taps: list[tuple[int, int, int]] = []
        self._phases: list[int] = []
        self.in_shape = _in_channels(blocks[0]), height, width
        plans = []
        for block in blocks:
            plans.append(self._plan(block, height, width))
            height, width = plans[-1].tall, plans[-1].wide
        self.out_shape = len(blocks[-1].project[0]), height, width
        self.plans = np.array(plans, np.int64)
        self._sizes = _room_sizes(plans)
        self.highs = np.array([block.highs for block in blocks], np.float32)
        self.weights = aligned(self._size, dtype=np.float32)
        np.concatenate([w.numpy() for w in self._weights], out=self.weights)
        self._weights.clear()
        self.taps = np.ascontiguousarray(np.array(self._taps, np.int64).T)
        self.phases = np.array(self._phases, np.int64)
        self.num_bits = self._bits

    def _plan(self, block: Block, height: int, width: int) -> Plan:
        inner, (reach, across) = len(block.taps), block.taps.shape[1:]
        vectors = -(-inner // VECTOR)
        out, channels = len(block.project[0]), _in_channels(block)
        tall, wide = block.out_size(height, width)
        row, out_row = (-(-n // VECTOR) * VECTOR for n in (channels, out))
        expand, bias = block.expand or (torch.zeros(inner, channels), torch.zeros(inner))
        expand = _pad(expand, vectors * VECTOR, row)
        project = _pad(block.project[0], out_row, vectors * VECTOR)
        used = _used_taps(block)
        first_tap, first_phase = self._keep_taps(block, used.tolist(), vectors * VECTOR)
        taps = _pad(block.taps[:, used[:, 0], used[:, 1]], vectors * VECTOR, len(used))
        return Plan(
            height, width, tall, wide, channels, row, vectors, out, out_row, reach, across,
            block.stride, *block.padding, int(block.expand is not None), int(block.is_residual),
            len(used), first_tap, first_phase,
            expand=self._keep(*_parts(expand[:, :channels])),
            expand_bias=self._keep(_pad(bias[:, None], vectors * VECTOR, 1)),
            expand_back=self._keep(expand),
            taps=self._keep(taps.T),
            taps_bias=self._keep(_pad(block.bias[:, None], vectors * VECTOR, 1)),
            project=self._keep(project.T),
            project_bias=self._keep(_pad(block.project[1][:, None], out_row, 1)),
            project_back=self._keep(*_parts(project[:out].T)),
            bits=self._claim(height * width * vectors if block.expand else 0),
            more_bits=self._claim(tall * wide * vectors),
            zeros=self._keep(torch.zeros(max(row, out_row))),
        )  # fmt: skip

    def _keep_taps(self, block: Block, used: list[list[int]], pitch: int) -> tuple[int, int]:
        """Note where taps meet the input, and where results meet them on the way back.

        A tap is a row and a column of what it is multiplied with, and the place of its weights.
        On the way back, the pixels of a phase, whose rows and columns leave the same remainders,
        are met by the same taps; their rows are counted up from the last that meets them.
        """
        first_tap, first_phase, stride = len(self._taps), len(self._phases), block.stride
        self._taps += [(row, column, t * pitch) for t, (row, column) in enumerate(used)]
        for down in range(stride):
            for right in range(stride):
                self._phases.append(len(self._taps))
                for t, (row, column) in enumerate(used):
                    y, x = down + block.padding[0] - row, right + block.padding[1] - column
                    if y % stride == 0 and x % stride == 0:
                        up = (down + block.padding[0]) // stride - y // stride
                        self._taps.append((up, x // stride, t * pitch))
        self._phases.append(len(self._taps))
        return first_tap, first_phase

    def _keep(self, *weights: Tensor) -> int:
        """Put weights behind the others; where they begin."""
        begin = self._size
        for weight in weights:
            self._weights.append(weight.detach().float().contiguous().flatten())
            self._size += weight.numel()
        # Whole cache lines.
        rest = -self._size % VECTOR
        self._weights.append(torch.zeros(rest))
        self._size += rest
        return begin

    def _claim(self, count: int) -> int:
        self._bits += count
        return self._bits - count

    def __deepcopy__(self, memo: dict[int, Any]) -> "Chain":
        return self  # nothing in it changes

    @contextmanager
    def room(self) -> Iterator[list[NDArray[Any]]]:
        """Memory for a thread: two images, rows of some inner channels, one row, places of taps."""
        try:
            room = _ROOMS.pop()
        except IndexError:
            room = []
        # Fresh memory is slow to touch: it is kept, and grows.
        if not room or any(len(part) < size for part, size in zip(room, self._sizes, strict=True)):
            *floats, places = self._sizes
            room = [aligned(size, dtype=np.float32) for size in floats]
            room.append(aligned(places, dtype=np.int64))
        try:
            yield room
        finally:
            _ROOMS.append(room)


def _room_sizes(plans: Sequence[Plan]) -> tuple[int, int, int, int, int]:
    """How much memory a thread needs, in numbers."""
    ends = [n for p in plans for n in (p.height * p.width * p.row, p.tall * p.wide * p.out_row)]
    wide = max(max(p.width + 2 * p.before, p.wide + 2 * p.across) for p in plans)
    line = wide * VECTOR * AT_ONCE
    reach, taps = max(p.reach for p in plans), max(p.num_taps for p in plans)
    return max(ends), max(ends), reach * line, line, taps


def _used_taps(block: Block) -> Tensor:
    """Row and column of the taps that are not 0 for every channel, [N, 2].

    All of them where, of those that meet some pixel, none would be left.
    """
    used = (block.taps != 0).any(0).nonzero()
    met = torch.unique(used % block.stride, dim=0)
    every = torch.ones_like(block.taps[0]).nonzero()
    return used if len(met) == block.stride**2 else every


def _in_channels(block: Block) -> int:
    return len(block.taps) if block.expand is None else block.expand[0].shape[1]


def _parts(weight: Tensor) -> list[Tensor]:
    """Weights of inner channels that exist at once, each transposed."""
    step = VECTOR * AT_ONCE
    return [weight[i : i + step].T for i in range(0, len(weight), step)]


def _pad(weight: Tensor, rows: int, columns: int) -> Tensor:
    return F.pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))
