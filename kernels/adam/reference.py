"""Adam for a batch of images, each with a step count of its own, in plain torch."""

import math

import torch
from torch import Tensor


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
    """Move every running image once along its gradient, in place, by its own count of steps.

    With t the image's steps, this one counted: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    latents -= learning_rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) (Kingma & Ba 2015).
    An image that does not run keeps everything as it is, whatever its gradient holds.

    Args:
        latents: Float [B, ...], contiguous; changed in place like the three that follow ``grad``.
        grad: Float, like ``latents``.
        exp_avg: Float, like ``latents``: m.
        exp_avg_sq: Float, like ``latents``, >= 0: v.
        step: Float [B], steps taken so far, >= 0.
        running: bool [B], which images are moved.
        learning_rate: In units of the latents.
        betas: b1 and b2, in (0, 1).
        eps: Added to the root, > 0.
    """
    shape = (-1,) + (1,) * (latents.ndim - 1)
    step += running
    grad = torch.where(running.view(shape), grad, 0)
    # Weights of zero keep the moments of the images at rest.
    active = running.to(latents.dtype).view(shape)
    exp_avg.lerp_(grad, (1 - betas[0]) * active)
    exp_avg_sq.lerp_(grad.square(), (1 - betas[1]) * active)
    # An image at rest may have taken no step yet.
    count = step.clamp_min(1)
    rate = learning_rate / _bias_correction(betas[0], count) * running
    root = _bias_correction(betas[1], count).rsqrt().view(shape)
    denominator = (exp_avg_sq.sqrt() * root).add_(eps)
    latents.addcdiv_(exp_avg * -rate.view(shape), denominator)


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """``1 - beta ** step``, exact to the last digits where the power is near 1.

    A power of a tensor rounds the last elements unlike the others, so an image's would depend on
    its place in the batch.
    """
    return -torch.expm1(step * math.log(beta))
