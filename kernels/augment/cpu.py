"""Affine sampling and normalisation for CPUs: one pass forward, one pass backward.

Both work on one image at a time, in a padded copy of it with four numbers to a pixel, of which the
last is of no account: a neighbour of a point is one vector, and none lies outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from polylight.kernels.compiling import compiled
from polylight.kernels.openmp import parallel_for

Singles = NDArray[np.float32]

# Pixels of grey before and after an image's own: the neighbours of a point beyond them.
_BEFORE, _AFTER = 2, 3
# Points of the canvas that are worth a thread: to hand work over takes as long as some 20,000.
_GRAIN = 1 << 17
_VECTOR = ir.VectorType(ir.FloatType(), 4)
_INT = ir.IntType(32)


def sample(
    images: Tensor, maps: Tensor, canvas: int, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """See :func:`polylight.kernels.augment.reference.sample`; the tensors are on a CPU.

    The gradient is scattered, each image's in the order of its canvas points, so it is the same
    every time.
    """
    found: Tensor = _Sample.apply(images, maps.detach(), canvas, mean, std)
    return found.to(dtype)


class _Sample(torch.autograd.Function):
    """Linear in the images, so the gradient needs the maps and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, maps: Tensor, canvas: int, mean: Tensor, std: Tensor
    ) -> Tensor:
        maps, mean, std = maps.contiguous(), mean.contiguous(), std.contiguous()
        ctx.save_for_backward(maps, std)
        ctx.shape = images.shape
        seen = torch.empty(len(images), canvas, canvas, 3)
        batch = [t.numpy() for t in (images.detach().contiguous(), maps, seen.flatten(2))]

        def run(start: int, stop: int) -> None:
            rows = (part[start:stop] for part in batch)
            _forward_all(mean.numpy(), std.numpy(), *rows)

        parallel_for(len(images), run, _grain_size(canvas))
        return seen.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, std = ctx.saved_tensors
        gradient = torch.empty(ctx.shape)
        seen = grad.float().permute(0, 2, 3, 1).contiguous()
        batch = [t.numpy() for t in (seen.flatten(2), maps, gradient)]

        def run(start: int, stop: int) -> None:
            rows = (part[start:stop] for part in batch)
            _backward_all(std.numpy(), *rows)

        parallel_for(len(gradient), run, _grain_size(seen.shape[1]))
        return gradient, None, None, None, None


def _grain_size(canvas: int) -> int:
    return -(-_GRAIN // canvas**2)


def _inserted(write: Callable[..., Any]) -> Any:
    """A function whose calls are replaced by LLVM's own instructions."""
    return intrinsic(write)


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


def _corners(builder: Any, place: Any, lower: Any, weights: Any) -> Any:
    """Where the four neighbours of a point are, each with its weight four times."""
    four, undefined = ir.Constant(place.type, 4), ir.Constant(_VECTOR, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(_INT, 4), [0] * 4)
    places = place, builder.add(place, four), lower, builder.add(lower, four)
    for corner, weight in zip(places, weights, strict=True):
        first = builder.insert_element(undefined, weight, ir.Constant(_INT, 0))
        yield corner, builder.shuffle_vector(first, undefined, everywhere)


# LLVM makes no vectors of the four numbers of a pixel by itself: numba leaves that pass out.
@_inserted
def _gather(typing: Any, pixels: Any, place: Any, lower: Any, w: Any, point: Any, at: Any) -> Any:
    """point[at : at + 4] = the sum of the neighbours of a point by their weights."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pixels, place, lower, w, point, at = values
        total = ir.Constant(_VECTOR, [0.0] * 4)
        weights = [builder.extract_value(w, i) for i in range(4)]
        for corner, weight in _corners(builder, place, lower, weights):
            source = _at(context, builder, signature.args[0], pixels, corner)
            total = builder.fadd(total, builder.fmul(builder.load(source, align=4), weight))
        builder.store(total, _at(context, builder, signature.args[4], point, at), align=4)
        return context.get_dummy_value()

    return types.void(pixels, types.intp, types.intp, w, point, types.intp), generate


@_inserted
def _scatter(typing: Any, pixels: Any, place: Any, lower: Any, w: Any, point: Any, at: Any) -> Any:
    """Add point[at : at + 4] to the neighbours of a point by their weights."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pixels, place, lower, w, point, at = values
        pull = builder.load(_at(context, builder, signature.args[4], point, at), align=4)
        weights = [builder.extract_value(w, i) for i in range(4)]
        for corner, weight in _corners(builder, place, lower, weights):
            target = _at(context, builder, signature.args[0], pixels, corner)
            total = builder.fadd(builder.load(target, align=4), builder.fmul(pull, weight))
            builder.store(total, target, align=4)
        return context.get_dummy_value()

    return types.void(pixels, types.intp, types.intp, w, point, types.intp), generate


class _Row(NamedTuple):
    """The points of one row of the canvas."""

    place: NDArray[np.int32]  # of the upper left neighbour, among the padded image's numbers
    right: Singles  # weight of the neighbours on the right, [0, 1)
    lower: Singles
    colours: Singles  # three numbers a point, and room for a fourth after the last


@compiled()
def _make_row(canvas: int) -> _Row:
    return _Row(
        np.empty(canvas, np.int32),
        np.empty(canvas, np.float32),
        np.empty(canvas, np.float32),
        np.zeros(3 * canvas + 1, np.float32),
    )


@compiled(inline=True)
def _locate(row: _Row, line: int, map_: Any, height: int, width: int) -> None:
    """Find where a line of the canvas lies in the padded image.

    The map in pixels: x = a u + b v + c and y = d u + e v + f, with (u, v) counted from the
    middle of the canvas, which costs the fewest digits. In units of half a side, pixel x of n is
    at (2 x + 1) / n - 1.
    """
    canvas = len(row.place)
    middle, v = 0.5 * canvas - 0.5, (line + 0.5) / canvas - 0.5
    a, d = map_[0, 0] * width / canvas, map_[1, 0] * height / canvas
    x = (map_[0, 1] * v + 0.5 * map_[0, 2] + 0.5) * width - 0.5 + _BEFORE
    y = (map_[1, 1] * v + 0.5 * map_[1, 2] + 0.5) * height - 0.5 + _BEFORE
    right, bottom, pitch = 1.0 * (width + _AFTER), 1.0 * (height + _AFTER), width + _BEFORE + _AFTER
    for j in range(canvas):
        u = j - middle
        across, down = a * u + x, d * u + y
        # Compared like this, what is no number becomes 0 and stays in memory that is ours.
        across = across if across > 0.0 else 0.0
        across = across if across < right else right
        down = down if down > 0.0 else 0.0
        down = down if down < bottom else bottom
        column, above = np.int32(across), np.int32(down)
        row.right[j] = np.float32(across - column)
        row.lower[j] = np.float32(down - above)
        row.place[j] = 4 * (above * pitch + column)


@compiled(inline=True)
def _weights(row: _Row, j: int) -> tuple[Any, Any, Any, Any]:
    right, lower = row.right[j], row.lower[j]
    left, upper = np.float32(1) - right, np.float32(1) - lower
    return left * upper, right * upper, left * lower, right * lower


@compiled()
def _pack(image: Singles, mean: Singles, std: Singles, padded: Singles) -> None:
    """Write a normalised image into the middle of its padded copy."""
    one = np.float32(1)
    scale = one / std[0], one / std[1], one / std[2]
    for y in range(image.shape[1]):
        red, green, blue = image[0, y], image[1, y], image[2, y]
        line = padded[y + _BEFORE, 4 * _BEFORE :]
        for x in range(len(red)):
            line[4 * x] = (red[x] - mean[0]) * scale[0]
            line[4 * x + 1] = (green[x] - mean[1]) * scale[1]
            line[4 * x + 2] = (blue[x] - mean[2]) * scale[2]
            line[4 * x + 3] = np.float32(0)


@compiled()
def _unpack(padded: Singles, std: Singles, image: Singles, rest: Singles) -> None:
    """Read an image back from the middle of its padded copy, scaled."""
    one = np.float32(1)
    scale = one / std[0], one / std[1], one / std[2]
    for y in range(image.shape[1]):
        red, green, blue = image[0, y], image[1, y], image[2, y]
        line = padded[y + _BEFORE, 4 * _BEFORE :]
        for x in range(len(red)):
            red[x] = line[4 * x] * scale[0]
            green[x] = line[4 * x + 1] * scale[1]
            blue[x] = line[4 * x + 2] * scale[2]
            # Without a gap all four come in whole vectors, in half the time.
            rest[x] = line[4 * x + 3]


@compiled(inline=True)
def _copy(source: Singles, target: Singles) -> None:
    for i in range(min(len(source), len(target))):
        target[i] = source[i]


@compiled()
def _forward_all(mean: Singles, std: Singles, images: Singles, maps: Any, seen: Singles) -> None:
    _, _, height, width = images.shape
    row = _make_row(seen.shape[1])
    padded = np.zeros((height + _BEFORE + _AFTER, 4 * (width + _BEFORE + _AFTER)), np.float32)
    pixels, pitch = padded.reshape(-1), padded.shape[1]
    for c in range(3):
        pixels[c::4] = (np.float32(0.5) - mean[c]) / std[c]
    for i in range(len(images)):
        _pack(images[i], mean, std, padded)
        for line in range(seen.shape[1]):
            _locate(row, line, maps[i], height, width)
            for j in range(seen.shape[1]):
                place = np.intp(row.place[j])
                _gather(pixels, place, place + pitch, _weights(row, j), row.colours, 3 * j)
            _copy(row.colours, seen[i, line])


@compiled()
def _backward_all(std: Singles, seen: Singles, maps: Any, gradient: Singles) -> None:
    _, _, height, width = gradient.shape
    row, rest = _make_row(seen.shape[1]), np.empty(width, np.float32)
    padded = np.empty((height + _BEFORE + _AFTER, 4 * (width + _BEFORE + _AFTER)), np.float32)
    pixels, pitch = padded.reshape(-1), padded.shape[1]
    for i in range(len(gradient)):
        pixels[:] = 0
        for line in range(seen.shape[1]):
            _locate(row, line, maps[i], height, width)
            _copy(seen[i, line], row.colours)
            for j in range(seen.shape[1]):
                place = np.intp(row.place[j])
                _scatter(pixels, place, place + pitch, _weights(row, j), row.colours, 3 * j)
        _unpack(padded, std, gradient[i], rest)
