"""Adam in Triton: one pass over the running images."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from polylight.kernels.adam import check_layout
from polylight.kernels.launch import launch

_BLOCK = 1024  # numbers to a program


@torch.no_grad()
def adam_step(
    latents: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    running: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """See :func:`polylight.kernels.adam.reference.adam_step`; float32 only.

    Images at rest are not even read.

    Raises:
        ValueError: If what changes in place is not contiguous float32.
    """
    check_layout(latents=latents, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    # Counted before the launch: every program of an image reads the count, and none may change it.
    step += running
    num = latents[0].numel()
    tiles = triton.cdiv(num, _BLOCK)
    launch(
        _step_kernel,
        tiles * len(latents),
        latents,
        grad.contiguous(),
        exp_avg,
        exp_avg_sq,
        step,
        running.view(torch.uint8),
        learning_rate,
        1 - betas[0],
        1 - betas[1],
        math.log(betas[0]),
        math.log(betas[1]),
        eps,
        num,
        tiles,
        BLOCK=_BLOCK,
    )


@triton.jit
def _bias_correction(log_beta: tl.tensor, step: tl.tensor) -> tl.tensor:
    """``1 - beta ** step`` as -expm1(step * log(beta)): a series where the power is near 1."""
    x = step * log_beta
    # Of expm1(x) / x; nine terms leave less than a float32 shows where x > -0.5.
    series = 1.0 + x / 9.0
    for k in tl.static_range(1, 8):
        series = 1.0 + series * x / (9.0 - k)
    return tl.where(x > -0.5, -x * series, 1.0 - tl.exp(x))


@triton.jit
def _step_kernel(
    latents_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    exp_avg_ptr: tl.tensor,
    exp_avg_sq_ptr: tl.tensor,
    step_ptr: tl.tensor,
    running_ptr: tl.tensor,
    learning_rate: tl.tensor,
    weight1: tl.tensor,
    weight2: tl.tensor,
    log_beta1: tl.tensor,
    log_beta2: tl.tensor,
    eps: tl.tensor,
    num: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Each program moves ``BLOCK`` numbers of one image, in float32; the image's end is masked."""
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    if tl.load(running_ptr + image) != 0:
        step = tl.load(step_ptr + image)
        rate = learning_rate / _bias_correction(log_beta1, step)
        root = 1.0 / tl.sqrt(_bias_correction(log_beta2, step))
        place = tile * BLOCK + tl.arange(0, BLOCK)
        inside, place = place < num, image * num + place
        grad = tl.load(grad_ptr + place, mask=inside)
        mean = tl.load(exp_avg_ptr + place, mask=inside)
        square = tl.load(exp_avg_sq_ptr + place, mask=inside)
        latents = tl.load(latents_ptr + place, mask=inside)
        mean += (grad - mean) * weight1
        square += (grad * grad - square) * weight2
        latents -= rate * mean / (tl.sqrt(square) * root + eps)
        tl.store(exp_avg_ptr + place, mean, mask=inside)
        tl.store(exp_avg_sq_ptr + place, square, mask=inside)
        tl.store(latents_ptr + place, latents, mask=inside)
