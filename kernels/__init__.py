"""Operations of the hot path; installed as ``polylight.kernels``.

Every operation has a folder and one function here. In the folder, ``reference`` says what is
computed, in a loop or formula that anyone can check; ``cpu`` is the kernel of CPUs (numba) and
``triton`` that of GPUs. Where the reference is a loop too slow to run with, ``torch`` has the same
for all rows at once; elsewhere the reference is plain torch, and runs as backend ``torch``.

``backend`` says which of them runs, already resolved (:func:`resolve_kernels`). Triton is imported
where it is asked for, as not every machine has it, and numba likewise, as it is slow to import. An
operation that has no kernel for a backend runs in torch.
"""

import torch
from torch import Tensor

from polylight.kernels.adam import reference as _adam
from polylight.kernels.augment import reference as _augment
from polylight.kernels.choice import Backend, Kernels, has_fma, resolve_kernels
from polylight.kernels.exact import has_float64, needs_float64, to_exact
from polylight.kernels.gram import reference as _gram
from polylight.kernels.gram.reference import centre
from polylight.kernels.inverted_residual import reference as _inverted_residual
from polylight.kernels.inverted_residual.layout import Chain
from polylight.kernels.inverted_residual.reference import Block
from polylight.kernels.kmeans import torch as _kmeans
from polylight.kernels.kmeans.seeding import kmeans_draws, kmeans_plusplus
from polylight.kernels.philox import torch as _philox
from polylight.kernels.philox.stream import stream_key

__all__ = [
    "Backend",
    "Block",
    "Chain",
    "Kernels",
    "adam_step",
    "centre",
    "centred_gram",
    "gram_kmeans",
    "has_float64",
    "has_fma",
    "inverted_residuals",
    "kmeans_draws",
    "kmeans_plusplus",
    "needs_float64",
    "philox_normal",
    "philox_uniform",
    "resolve_kernels",
    "sample",
    "stream_key",
    "to_exact",
]


def philox_uniform(key: Tensor, counter: Tensor, num: int, *, backend: Backend = "torch") -> Tensor:
    """See :func:`polylight.kernels.philox.reference.philox_uniform`; every bit is the same."""
    if backend == "triton":
        from polylight.kernels.philox import triton

        return triton.philox_uniform(key, counter, num)
    return _philox.philox_uniform(key, counter, num)


def philox_normal(key: Tensor, counter: Tensor, num: int, *, backend: Backend = "torch") -> Tensor:
    """See :func:`polylight.kernels.philox.reference.philox_normal`.

    The backends give the same bits on one device, and the reference's numbers to rounding.
    """
    if backend == "triton":
        from polylight.kernels.philox import triton

        return triton.philox_normal(key, counter, num)
    return _philox.philox_normal(key, counter, num)


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
    """See :func:`polylight.kernels.augment.reference.sample`."""
    if images.shape[1] != 3 and backend != "torch":
        # The kernels are for three channels.
        groups = _augment.in_threes(images, mean, std)
        parts = [sample(i, maps, canvas, m, s, dtype, backend=backend) for i, m, s in groups]
        whole = torch.cat(parts, 1)[:, : images.shape[1]]
        return whole.contiguous(memory_format=torch.channels_last)
    if backend == "triton":
        from polylight.kernels.augment import triton

        return triton.sample(images, maps, canvas, mean, std, dtype)
    if backend == "numba":
        from polylight.kernels.augment import cpu

        return cpu.sample(images, maps, canvas, mean, std, dtype)
    return _augment.sample(images, maps, canvas, mean, std, dtype)


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
    """See :func:`polylight.kernels.adam.reference.adam_step`.

    Raises:
        ValueError: If a kernel is asked for, and what changes in place is not contiguous float32.
    """
    run = _adam.adam_step
    if backend == "triton":
        from polylight.kernels.adam import triton

        run = triton.adam_step
    elif backend == "numba":
        from polylight.kernels.adam import cpu

        run = cpu.adam_step
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


def centred_gram(
    embeddings: Tensor, valid: Tensor, *, backend: Backend = "torch"
) -> tuple[Tensor, Tensor]:
    """See :func:`polylight.kernels.gram.reference.centred_gram`."""
    if backend == "numba":
        from polylight.kernels.gram import cpu

        return cpu.centred_gram(embeddings, valid)
    return _gram.centred_gram(embeddings, valid)


def gram_kmeans(
    gram: Tensor,
    counts: Tensor,
    limits: Tensor,
    uniform: Tensor,
    k_max: int,
    iterations: int,
    *,
    backend: Backend = "torch",
) -> tuple[Tensor, Tensor]:
    """Find the clusters of every neuron for every K; see :mod:`polylight.kernels.kmeans`.

    Args:
        gram: float64 [U, N, N], inner products of the centred points, the valid ones first, 0 for
            the others (:func:`centred_gram`).
        counts: int64 [U], number of valid points, 0..N.
        limits: int64 [U], the largest K that is wanted of each neuron, at most its count.
        uniform: float32 [U, R, 1 + (k_max - 1) TRIALS] in (0, 1): R starts for each K
            (:func:`kmeans_draws`).
        k_max: Largest number of clusters, 1..127.
        iterations: The most Lloyd iterations, > 0.
        backend: Which implementation runs.

    Returns:
        int8 [U, k_max, N], labels for K = 1..k_max, -1 for points that are not valid; float64
        [U, k_max], inertia. Above its limit a neuron is left as if it were one cluster. Of starts
        that end equally well the first is kept. A NaN makes its neuron's inertia NaN.
    """
    if backend == "numba":
        from polylight.kernels.kmeans import cpu

        return cpu.gram_kmeans(gram, counts, limits, uniform, k_max, iterations)
    if backend == "triton":
        from polylight.kernels.kmeans import triton

        # Of more images products take most of the time, and torch's are as fast as any.
        if triton.fits(gram.shape[-1], k_max):
            return triton.gram_kmeans(gram, counts, limits, uniform, k_max, iterations)
    return _kmeans.gram_kmeans(gram, counts, limits, uniform, k_max, iterations)


def inverted_residuals(x: Tensor, chain: Chain, *, backend: Backend = "torch") -> Tensor:
    """Run inverted residual blocks one after the other, with a gradient to their input.

    Args:
        x: float32 [B, C, H, W]; with numba on a CPU and of the chain's ``in_shape``.
        chain: The blocks.
        backend: Which implementation runs; numba where the processor :func:`has_fma`.

    Returns:
        float32 [B, D, H', W'], D channels of the last block.
    """
    if backend == "numba":
        from polylight.kernels.inverted_residual import cpu

        return cpu.inverted_residuals(x, chain)
    return _inverted_residual.inverted_residuals(x, chain.blocks)
