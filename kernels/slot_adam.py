"""One step of Adam for a pool whose slots are at different steps."""

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
    """Move every running slot once along its gradient, in place, by its own count of steps.

    With t the slot's steps, this one counted: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    latents -= learning_rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) (Kingma & Ba 2015).
    A slot that does not run keeps everything as it is, whatever its gradient holds.

    Args:
        latents: Float [B, ...], contiguous; changed in place like the three that follow ``grad``.
        grad: Float, like ``latents``.
        exp_avg: Float, like ``latents``: m.
        exp_avg_sq: Float, like ``latents``, >= 0: v.
        step: Float [B], steps taken so far, >= 0.
        running: bool [B].
        learning_rate: In units of the latents.
        betas: b1 and b2, in (0, 1).
        eps: Added to the root, > 0.
    """
    shape = (-1,) + (1,) * (latents.ndim - 1)
    step += running
    grad = torch.where(running.view(shape), grad, 0)
    # Weights of zero keep the moments of the slots at rest.
    active = running.to(latents.dtype).view(shape)
    exp_avg.lerp_(grad, (1 - betas[0]) * active)
    exp_avg_sq.lerp_(grad.square(), (1 - betas[1]) * active)
    # A slot at rest may have taken no step yet.
    count = step.clamp_min(1)
    rate = learning_rate / _bias_correction(betas[0], count) * running
    root = _bias_correction(betas[1], count).rsqrt().view(shape)
    denominator = (exp_avg_sq.sqrt() * root).add_(eps)
    latents.addcdiv_(exp_avg * -rate.view(shape), denominator)


def check_layout(**changed: Tensor) -> None:
    """Refuse tensors that a kernel cannot change in place.

    Raises:
        ValueError: If one of them is not contiguous float32.
    """
    for name, value in changed.items():
        if value.dtype != torch.float32 or not value.is_contiguous():
            raise ValueError(
                f"expected contiguous float32 {name}; got {value.dtype}, strides {value.stride()}. "
                "Make it contiguous float32, or take the torch backend."
            )


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """``1 - beta ** step``, exact to the last digits where the power is near 1.

    A power of a tensor rounds the last elements unlike the others, so a slot's would depend on
    its place in the pool.
    """
    return -torch.expm1(step * math.log(beta))
