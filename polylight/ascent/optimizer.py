"""Adam for a pool whose slots are at different steps."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from polylight.kernels import Backend, adam_step


class SlotAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) whose moments and step count belong to a slot, not to the batch.

    A slot that is refilled starts anew; a slot that is not running stays as it is.

    Args:
        latents: Float [B, ...].
        running: bool [B], which slots move; read at each step.
        learning_rate: In units of the latents.
        backend: Which implementation of the kernels runs.
    """

    def __init__(
        self,
        latents: nn.Parameter,
        running: Tensor,
        learning_rate: float,
        backend: Backend = "torch",
    ) -> None:
        super().__init__([latents], {"lr": learning_rate, "betas": (0.9, 0.999), "eps": 1e-8})
        self._running, self.backend = running, backend
        self.state[latents] = {
            "exp_avg": torch.zeros_like(latents),
            "exp_avg_sq": torch.zeros_like(latents),
            "step": latents.new_zeros(latents.shape[0]),
        }

    def reset(self, slots: Tensor) -> None:
        """Forget what the given slots (int64) have gathered."""
        for state in self.state.values():
            for value in state.values():
                value.index_fill_(0, slots, 0)

    def update(self) -> None:
        """Move every running slot once along its gradient."""
        for group in self.param_groups:
            for latents in group["params"]:
                adam_step(
                    latents,
                    latents.grad,
                    **self.state[latents],
                    running=self._running,
                    learning_rate=group["lr"],
                    betas=group["betas"],
                    eps=group["eps"],
                    backend=self.backend,
                )

    def step(self, closure: Callable[[], object] | None = None) -> None:  # type: ignore[override]
        """Take a step that a trainer counts.

        Args:
            closure: The whole step, :meth:`update` included, which may be one launch on a GPU;
                by default, :meth:`update` alone.
        """
        if closure is None:
            self.update()
        else:
            closure()
