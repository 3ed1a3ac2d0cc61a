"""Operations of the hot path; installed as ``polylight.kernels``.

Each has a twin in plain torch, which says what it does, and kernels of the same signature: Triton's
for GPUs, numba's for CPUs. ``backend`` says which of them runs, already resolved
(:func:`polylight.kernels.choice.resolve_kernels`). Triton is imported where it is asked for, as
not every machine has it, and numba likewise, as it is slow to import. Random numbers have no numba
kernel, being drawn rarely: there ``numba`` is plain torch.
"""

from typing import Literal

import torch
from torch import Tensor

from polylight.kernels import augment, philox, slot_adam
from polylight.kernels.philox import stream_key

__all__ = ["Backend", "adam_step", "philox_normal", "philox_uniform", "sample", "stream_key"]

Backend = Literal["torch", "numba", "triton"]


def philox_uniform(key: Tensor, counter: Tensor, num: int, *, backend: Backend = "torch") -> Tensor:
    """See :func:`polylight.kernels.philox.philox_uniform`; all backends give the same bits."""
    if backend == "triton":
        from polylight.kernels import philox_triton

        return philox_triton.philox_uniform(key, counter, num)
    return philox.philox_uniform(key, counter, num)


def philox_normal(key: Tensor, counter: Tensor, num: int, *, backend: Backend = "torch") -> Tensor:
    """See :func:`polylight.kernels.philox.philox_normal`; on one device likewise."""
    if backend == "triton":
        from polylight.kernels import philox_triton

        return philox_triton.philox_normal(key, counter, num)
    return philox.philox_normal(key, counter, num)


def sample(
    images: Tensor,
    maps: Tensor,
    canvas: int,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    *,
    backend: Backend = "torch",
) -> Tensor:
    """See :func:`polylight.kernels.augment.sample`."""
    if backend == "triton":
        from polylight.kernels import augment_triton

        return augment_triton.sample(images, maps, canvas, mean, std, dtype)
    if backend == "numba":
        from polylight.kernels import augment_numba

        return augment_numba.sample(images, maps, canvas, mean, std, dtype)
    return augment.sample(images, maps, canvas, mean, std, dtype)


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
    backend: Backend = "torch",
) -> None:
    """See :func:`polylight.kernels.slot_adam.adam_step`."""
    run = slot_adam.adam_step
    if backend == "triton":
        from polylight.kernels import slot_adam_triton

        run = slot_adam_triton.adam_step
    elif backend == "numba":
        from polylight.kernels import slot_adam_numba

        run = slot_adam_numba.adam_step
    run(
        latents,
        grad,
        exp_avg,
        exp_avg_sq,
        step,
        running,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
    )
