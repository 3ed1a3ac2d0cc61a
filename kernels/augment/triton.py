"""Affine sampling and normalisation in Triton: one pass forward, one pass backward."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from polylight.kernels.launch import launch

_BLOCK = 256  # pixels to a program


def sample(
    images: Tensor, maps: Tensor, canvas: int, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """See :func:`polylight.kernels.augment.reference.sample`.

    The gradient is gathered: each pixel of the image sums over the canvas points that touch it,
    in one order. So it is the same every time, which a scatter by atomic adds is not.
    """
    found: Tensor = _Sample.apply(images, maps.detach(), canvas, mean, std, dtype)
    return found


class _Sample(torch.autograd.Function):
    """Linear in the images, so the gradient needs the maps and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        maps: Tensor,
        canvas: int,
        mean: Tensor,
        std: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        maps, mean, std = maps.contiguous(), mean.contiguous(), std.contiguous()
        ctx.save_for_backward(maps, std)
        ctx.shape, ctx.canvas = images.shape, canvas
        count, _, height, width = images.shape
        out = torch.empty(
            count,
            3,
            canvas,
            canvas,
            dtype=dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        tiles = triton.cdiv(canvas * canvas, _BLOCK)
        launch(
            _forward_kernel,
            tiles * count,
            images,
            maps,
            mean,
            std,
            out,
            *images.stride(),
            height,
            width,
            canvas,
            tiles,
            BLOCK=_BLOCK,
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps, std = ctx.saved_tensors
        count, _, height, width = ctx.shape
        out = torch.empty(ctx.shape, device=grad.device)
        tiles = triton.cdiv(height * width, _BLOCK)
        launch(
            _backward_kernel,
            tiles * count,
            grad,
            maps,
            std,
            out,
            *grad.stride(),
            height,
            width,
            ctx.canvas,
            tiles,
            BLOCK=_BLOCK,
        )
        return out, None, None, None, None, None


@triton.jit
def _pixel_map(
    map_ptr: tl.tensor, height: tl.tensor, width: tl.tensor, canvas: tl.tensor
) -> tl.tensor:
    """The map of one image in pixels: x = a u + b v + c and y = d u + e v + f.

    Here (u, v) is counted from the middle of the canvas, which costs the fewest digits. In units
    of half a side, pixel x of n is at (2 x + 1) / n - 1.
    """
    # 1.0 makes floats of sizes, also of those that are compiled in.
    across, down = width / (canvas * 1.0), height / (canvas * 1.0)
    a, b = tl.load(map_ptr) * across, tl.load(map_ptr + 1) * across
    d, e = tl.load(map_ptr + 3) * down, tl.load(map_ptr + 4) * down
    c = tl.load(map_ptr + 2) * (0.5 * width) + (0.5 * width - 0.5)
    f = tl.load(map_ptr + 5) * (0.5 * height) + (0.5 * height - 0.5)
    return a, b, c, d, e, f


@triton.jit
def _forward_kernel(
    image_ptr: tl.tensor,
    map_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    std_ptr: tl.tensor,
    out_ptr: tl.tensor,
    stride_image: tl.tensor,
    stride_channel: tl.tensor,
    stride_row: tl.tensor,
    stride_column: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    canvas: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each program samples ``BLOCK`` canvas points of one image, all channels, in float32."""
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    a, b, c, d, e, f = _pixel_map(map_ptr + image * 6, height, width, canvas)
    point = tile * BLOCK + tl.arange(0, BLOCK)
    inside = point < canvas * canvas
    u = (point % canvas).to(tl.float32) - (0.5 * canvas - 0.5)
    v = (point // canvas).to(tl.float32) - (0.5 * canvas - 0.5)
    # Beyond one pixel outside all is grey; clamped, every coordinate fits an integer.
    x = tl.minimum(tl.maximum(a * u + b * v + c, -2.0), width + 1.0)
    y = tl.minimum(tl.maximum(d * u + e * v + f, -2.0), height + 1.0)
    left, top = tl.floor(x), tl.floor(y)
    right, bottom = x - left, y - top  # weights of the right and the lower neighbours
    column, line = left.to(tl.int32), top.to(tl.int32)
    has_left, has_right = (column >= 0) & (column < width), (column >= -1) & (column < width - 1)
    has_top, has_bottom = (line >= 0) & (line < height), (line >= -1) & (line < height - 1)
    corner_ptr = image_ptr + image * stride_image + line * stride_row + column * stride_column
    place_ptr = out_ptr + (image * (canvas * canvas) + point) * 3
    for channel in tl.static_range(3):
        p = corner_ptr + channel * stride_channel
        q = p + stride_row
        # 0.5 is the grey that lies outside.
        v00 = tl.load(p, mask=inside & has_top & has_left, other=0.5) - 0.5
        v01 = tl.load(p + stride_column, mask=inside & has_top & has_right, other=0.5) - 0.5
        v10 = tl.load(q, mask=inside & has_bottom & has_left, other=0.5) - 0.5
        v11 = tl.load(q + stride_column, mask=inside & has_bottom & has_right, other=0.5) - 0.5
        upper = v00 * (1.0 - right) + v01 * right
        lower = v10 * (1.0 - right) + v11 * right
        moved = upper * (1.0 - bottom) + lower * bottom + 0.5
        normal = (moved - tl.load(mean_ptr + channel)) / tl.load(std_ptr + channel)
        tl.store(place_ptr + channel, normal.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _window(extent: tl.tensor, canvas: tl.tensor) -> tl.tensor:
    """Canvas points that may lie within ``extent`` of a point, along one axis: at most so many.

    The whole canvas where the map has no inverse or a window would not be smaller.
    """
    return tl.where(2.0 * extent + 1.0 < canvas, tl.floor(2.0 * extent) + 1.0, canvas).to(tl.int32)


@triton.jit
def _backward_kernel(
    grad_ptr: tl.tensor,
    map_ptr: tl.tensor,
    std_ptr: tl.tensor,
    out_ptr: tl.tensor,
    stride_image: tl.tensor,
    stride_channel: tl.tensor,
    stride_row: tl.tensor,
    stride_column: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    canvas: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each program gathers the gradient of ``BLOCK`` pixels of one image, summed in float32.

    The canvas points that touch a pixel lie where the inverse map takes the square of two pixels
    around it; a box around that is searched, and weights are zero elsewhere in the box.
    """
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    a, b, c, d, e, f = _pixel_map(map_ptr + image * 6, height, width, canvas)
    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    column = (pixel % width).to(tl.float32)
    row = (pixel // width).to(tl.float32)

    determinant = a * e - b * d
    # One per cent more than the box, so that no rounding loses a point on its edge.
    extent_j = 1.01 * (tl.abs(e) + tl.abs(b)) / tl.abs(determinant)
    extent_i = 1.01 * (tl.abs(d) + tl.abs(a)) / tl.abs(determinant)
    count_j, count_i = _window(extent_j, canvas), _window(extent_i, canvas)
    middle = 0.5 * canvas - 0.5
    first_j = (e * (column - c) - b * (row - f)) / determinant + middle - extent_j
    first_i = (a * (row - f) - d * (column - c)) / determinant + middle - extent_i
    # Clamped, every coordinate fits an integer, and a window outside stays outside.
    first_j = tl.ceil(tl.minimum(tl.maximum(first_j, -1.0 * canvas), 1.0 * canvas))
    first_i = tl.ceil(tl.minimum(tl.maximum(first_i, -1.0 * canvas), 1.0 * canvas))
    first_j = tl.where(count_j < canvas, first_j, 0.0)
    first_i = tl.where(count_i < canvas, first_i, 0.0)

    red = tl.zeros([BLOCK], dtype=tl.float32)
    green = tl.zeros([BLOCK], dtype=tl.float32)
    blue = tl.zeros([BLOCK], dtype=tl.float32)
    step, steps = 0, count_i * count_j
    while step < steps:
        i, j = first_i + step // count_j, first_j + step % count_j
        u, v = j - middle, i - middle
        across = 1.0 - tl.abs(a * u + b * v + c - column)
        down = 1.0 - tl.abs(d * u + e * v + f - row)
        touches = inside & (across > 0) & (down > 0)
        touches = touches & (i >= 0) & (i < canvas) & (j >= 0) & (j < canvas)
        weight = across * down
        place_ptr = grad_ptr + image * stride_image
        place_ptr += i.to(tl.int32) * stride_row + j.to(tl.int32) * stride_column
        red += weight * tl.load(place_ptr, mask=touches, other=0.0).to(tl.float32)
        place_ptr += stride_channel
        green += weight * tl.load(place_ptr, mask=touches, other=0.0).to(tl.float32)
        place_ptr += stride_channel
        blue += weight * tl.load(place_ptr, mask=touches, other=0.0).to(tl.float32)
        step += 1
    place_ptr = out_ptr + image * (3 * height * width) + pixel
    tl.store(place_ptr, red / tl.load(std_ptr), mask=inside)
    place_ptr += height * width
    tl.store(place_ptr, green / tl.load(std_ptr + 1), mask=inside)
    place_ptr += height * width
    tl.store(place_ptr, blue / tl.load(std_ptr + 2), mask=inside)
