"""The weights of blocks in the order in which the loops read them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polylight.kernels.inverted_residual.reference import Block
from polylight.kernels.memory import aligned

VECTOR = 16
"""Numbers of a vector."""

AT_ONCE = 3
"""Vectors of inner channels that exist at once: a few rows of them stay in the first cache."""

_WORKSPACES: list[list[NDArray[Any]]] = []


class Plan(NamedTuple):
    """A block as integers: shapes, and where its numbers lie among all weights and all bits."""

    height: int
    width: int
    out_height: int
    out_width: int
    channels: int
    row: int  # channels, filled up to whole vectors
    vectors: int  # of the inner channels
    out_channels: int
    out_row: int
    kernel_height: int
    kernel_width: int
    stride: int
    pad_top: int
    pad_left: int
    has_expand: int
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
    out_bits: int
    zeros: int  # as many weights that are 0 as a row has numbers


class Chain:
    """Blocks that run one after the other, laid out once for many runs.

    Attributes:
        blocks: As they were given.
        in_shape: Channels, height and width of the first one's input.
        out_shape: Of the last one's result.

    Args:
        blocks: At least one, each fitting the one before; on the CPU.
        height: Of the first one's input.
        width: Likewise.
    """

    def __init__(self, blocks: Sequence[Block], height: int, width: int) -> None:
        self.blocks = tuple(blocks)
        self._weights: list[Tensor] = []
        self._size = 0
        self._bits = 0
        self._taps: list[tuple[int, int, int]] = []
        self._phases: list[int] = []
        self.in_shape = _in_channels(blocks[0]), height, width
        plans = []
        for block in blocks:
            plans.append(self._plan(block, height, width))
            height, width = plans[-1].out_height, plans[-1].out_width
        self.out_shape = len(blocks[-1].project[0]), height, width
        self.plans = np.array(plans, np.int64)
        self._sizes = _workspace_sizes(plans)
        self.highs = np.array([block.highs for block in blocks], np.float32)
        self.weights = aligned(self._size, dtype=np.float32)
        np.concatenate([w.numpy() for w in self._weights], out=self.weights)
        self._weights.clear()
        self.taps = np.ascontiguousarray(np.array(self._taps, np.int64).T)
        self.phases = np.array(self._phases, np.int64)
        self.num_bits = self._bits

    def _plan(self, block: Block, height: int, width: int) -> Plan:
        inner, kernel_height, kernel_width = block.taps.shape
        vectors = -(-inner // VECTOR)
        out, channels = len(block.project[0]), _in_channels(block)
        out_height, out_width = block.out_size(height, width)
        row, out_row = (-(-n // VECTOR) * VECTOR for n in (channels, out))
        expand, bias = block.expand or (torch.zeros(inner, channels), torch.zeros(inner))
        expand = _pad(expand, vectors * VECTOR, row)
        project = _pad(block.project[0], out_row, vectors * VECTOR)
        used = _used_taps(block)
        first_tap, first_phase = self._keep_taps(block, used.tolist(), vectors * VECTOR)
        taps = _pad(block.taps[:, used[:, 0], used[:, 1]], vectors * VECTOR, len(used))
        return Plan(
            height, width, out_height, out_width, channels, row, vectors, out, out_row,
            kernel_height, kernel_width, block.stride, *block.padding,
            int(block.expand is not None), int(block.is_residual),
            len(used), first_tap, first_phase,
            expand=self._keep(*_parts(expand[:, :channels])),
            expand_bias=self._keep(_pad(bias[:, None], vectors * VECTOR, 1)),
            expand_back=self._keep(expand),
            taps=self._keep(taps.T),
            taps_bias=self._keep(_pad(block.bias[:, None], vectors * VECTOR, 1)),
            project=self._keep(project.T),
            project_bias=self._keep(_pad(block.project[1][:, None], out_row, 1)),
            project_back=self._keep(*_parts(project[:out].T)),
            bits=self._reserve(height * width * vectors if block.expand else 0),
            out_bits=self._reserve(out_height * out_width * vectors),
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

    def _reserve(self, count: int) -> int:
        self._bits += count
        return self._bits - count

    def __deepcopy__(self, memo: dict[int, Any]) -> "Chain":
        return self  # nothing in it changes

    @contextmanager
    def workspace(self) -> Iterator[list[NDArray[Any]]]:
        """Memory for a thread: two images, rows of some inner channels, one row, places of taps."""
        try:
            memory = _WORKSPACES.pop()
        except IndexError:
            memory = []
        # Fresh memory is slow to touch: it is kept, and grows.
        if not memory or any(
            len(part) < size for part, size in zip(memory, self._sizes, strict=True)
        ):
            *floats, places = self._sizes
            memory = [aligned(size, dtype=np.float32) for size in floats]
            memory.append(aligned(places, dtype=np.int64))
        try:
            yield memory
        finally:
            _WORKSPACES.append(memory)


def _workspace_sizes(plans: Sequence[Plan]) -> tuple[int, int, int, int, int]:
    """How much memory a thread needs, in numbers."""
    ends = [
        n
        for p in plans
        for n in (p.height * p.width * p.row, p.out_height * p.out_width * p.out_row)
    ]
    wide = max(max(p.width + 2 * p.pad_left, p.out_width + 2 * p.kernel_width) for p in plans)
    line = wide * VECTOR * AT_ONCE
    reach, taps = max(p.kernel_height for p in plans), max(p.num_taps for p in plans)
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
