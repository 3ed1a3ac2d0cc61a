"""Adam for CPUs: one pass over the running images."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from polylight.kernels.adam import check_layout
from polylight.kernels.compiling import compiled


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
    """See :func:`polylight.kernels.adam.reference.adam_step`; float32 on a CPU only.

    Images at rest are not even read.

    Raises:
        ValueError: If what changes in place is not contiguous float32.
    """
    check_layout(latents=latents, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    rows = [t.detach().reshape(len(t), -1) for t in (latents, grad, exp_avg, exp_avg_sq)]
    batch = (t.numpy() for t in (*rows, step.detach(), running))
    # By this thread alone: to reach another takes as long as some images.
    _step_all(learning_rate, *betas, eps, *batch)


@compiled()
def _step_all(
    learning_rate: float, beta1: float, beta2: float, eps: float,
    latents: Any, grads: Any, exp_avgs: Any, exp_avg_sqs: Any, steps: Any,
    running: NDArray[np.bool_],
) -> None:  # fmt: skip
    weight1, weight2, small = np.float32(1 - beta1), np.float32(1 - beta2), np.float32(eps)
    for image in range(len(latents)):
        if not running[image]:
            continue
        steps[image] += 1
        rate = np.float32(learning_rate / -math.expm1(steps[image] * math.log(beta1)))
        root = np.float32(1 / math.sqrt(-math.expm1(steps[image] * math.log(beta2))))
        latent, grad = latents[image], grads[image]
        mean, square = exp_avgs[image], exp_avg_sqs[image]
        for i in range(len(latent)):
            mean[i] += (grad[i] - mean[i]) * weight1
            square[i] += (grad[i] * grad[i] - square[i]) * weight2
            latent[i] -= rate * mean[i] / (np.sqrt(square[i]) * root + small)
