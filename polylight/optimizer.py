"""Adam for a pool whose slots are at different steps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class SlotAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) whose moments and step count belong to a slot, not to the batch.

    A slot that is refilled starts anew; a slot that is not running stays as it is.
    """

    def __init__(self, latents: nn.Parameter, running: Tensor, learning_rate: float) -> None:
        super().__init__([latents], {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8})
        self._running = running
        self.state[latents] = {
            "exp_avg": torch.zeros_like(latents),
            "exp_avg_sq": torch.zeros_like(latents),
            "step": latents.new_zeros(latents.shape[0]),
        }

    def reset(self, slots: Tensor) -> None:
        """Forget what the given slots (int64) have gathered."""
        for state in self.state.values():
            for value in state.values():
                value[slots] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every running slot once along its gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for latents in group["params"]:
                state, shape = self.state[latents], (-1,) + (1,) * (latents.ndim - 1)
                state["step"] += self._running
                step = state["step"].clamp_min(1)
                state["exp_avg"].lerp_(latents.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(latents.grad.square(), 1 - beta2)
                rate = group["lr"] / _bias_correction(beta1, step) * self._running
                root = _bias_correction(beta2, step).rsqrt().view(shape)
                denominator = (state["exp_avg_sq"].sqrt() * root).add_(group["eps"])
                latents.addcdiv_(state["exp_avg"] * -rate.view(shape), denominator)
        return loss


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """``1 - beta ** step``, exact to the last digits where the power is near 1.

    A power of a tensor rounds the last elements unlike the others, so a slot's would depend on
    its place in the pool.
    """
    return -torch.expm1(step * math.log(beta))
