"""Adam for a pool whose images are at different steps."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polylight.ascent.pool import Pool
from polylight.kernels import Backend, adam_step


class ImageAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) whose moments and step count belong to an image, not to the batch.

    An image that enters a slot starts anew; a slot that is not moving stays as it is.

    Args:
        latents: Float [B, ...].
        moving: bool [B], which slots move; read at each step.
        learning_rate: In units of the latents.
        backend: Which implementation of the kernels runs.
    """

    def __init__(
        self,
        latents: nn.Parameter,
        moving: Tensor,
        learning_rate: float,
        backend: Backend = "torch",
    ) -> None:
        super().__init__([latents], {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8})
        self._moving, self._backend = moving, backend
        self.state[latents] = {
            "exp_avg": torch.zeros_like(latents),
            "exp_avg_sq": torch.zeros_like(latents),
            "step": latents.new_zeros(latents.shape[0]),
        }

    @classmethod
    def of(cls, pool: Pool) -> "ImageAdam":
        """The optimizer of a pool, which is on its device."""
        return cls(pool.latents, pool.moving, pool.ascent.learning_rate, pool.backend)

    @torch.no_grad()
    def reset(self, slots: Tensor) -> None:
        """Forget the moments and steps of the given slots (int64)."""
        for state in self.state.values():
            for value in state.values():
                value.index_fill_(0, slots, 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> None:  # type: ignore[override]
        """Move every slot that is moving once along its gradient.

        Args:
            closure: What leaves the gradient; by default, it is there already.
        """
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for latents in group["params"]:
                adam_step(
                    latents,
                    latents.grad,
                    **self.state[latents],
                    running=self._moving,
                    learning_rate=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                    backend=self._backend,
                )
