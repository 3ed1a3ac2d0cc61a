"""From embeddings to clusters: one interface over three back ends."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from polylight.clustering import cuml, faiss, gram
from polylight.clustering.bic import bic, choose_k, reachable
from polylight.clustering.splits import Selection, split
from polylight.errors import InputError, nearest
from polylight.kernels import Backend as KernelBackend
from polylight.kernels import Kernels, centre, needs_float64, resolve_kernels

Backend = Literal["gram", "faiss", "cuml"]
_LIBRARIES = {"faiss": faiss.solve, "cuml": cuml.solve}
# Numbers held per chunk of neurons: what fits the cache of a CPU, and half a GiB on a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**26}
# Labels travel as int8.
MOST_CLUSTERS = 127
"""Largest number of clusters that can be asked for."""
_ITERATIONS = 16


class Clusters(NamedTuple):
    """The clusters of each neuron's images.

    Attributes:
        labels: int64 [U, N], 0 is the largest cluster (of equals the one with the first image);
            -1 where the image is not valid.
        k: int64 [U], number of clusters as selected; 1 where there are fewer than two valid.
        bic: float64 [U, k_max], criterion for K = 1..k_max in nats; NaN where K is out of reach.
        inertia: float64 [U, k_max], sum of squared distances to the cluster means; NaN likewise.
    """

    labels: Tensor
    k: Tensor
    bic: Tensor
    inertia: Tensor


class _Solver(NamedTuple):
    """How k-means is run."""

    restarts: int
    iterations: int
    backend: Backend
    kernels: KernelBackend

    def sweep(
        self, embeddings: Tensor, valid: Tensor, keys: Tensor, k_max: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield labels [U, k_max, N], inertia, order of the points and counts, by chunks of U."""
        num, images, _ = embeddings.shape
        budget = _CHUNK.get(embeddings.device.type, _CHUNK["cpu"])
        solved = min(k_max, max(1, images // 2))
        # K that no neuron of so many images can reach are not worked out.
        k = torch.arange(k_max, device=embeddings.device).clamp_max(solved - 1)
        chunk = max(1, budget // (images * (self.restarts * k_max + images)))
        for start in range(0, max(num, 1), chunk):
            rows = slice(start, start + chunk)
            batch = embeddings[rows], valid[rows], keys[rows]
            how = solved, self.restarts, self.iterations
            if self.backend == "gram":
                labels, inertia, order = gram.solve(*batch, *how, self.kernels)
            else:
                points, order = centre(*batch[:2])
                labels, inertia = _LIBRARIES[self.backend](
                    points, batch[1].gather(1, order), batch[2], *how
                )
            yield labels[:, k], inertia[:, k], order, batch[1].sum(-1)

    def two_means(self, embeddings: Tensor, valid: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Labels int64 [U, N] of the images for two clusters; inertia [U, 2] for one and two."""
        parts = [
            (_in_order_of_images(labels[:, 1], order), inertia)
            for labels, inertia, order, _ in self.sweep(embeddings, valid, keys, 2)
        ]
        labels, inertia = map(torch.cat, zip(*parts, strict=True))
        return labels, inertia


@needs_float64
def cluster(
    embeddings: Tensor,
    *,
    valid: Tensor,
    keys: Tensor,
    k_min: int = 1,
    k_max: int = 8,
    restarts: int = 32,
    iterations: int = _ITERATIONS,
    backend: Backend = "gram",
    kernels: Kernels = "auto",
    selection: Selection = "bic",
    dims: int | None = None,
) -> Clusters:
    """Cluster the images of every neuron by k-means.

    Each K has ``restarts`` starts by greedy k-means++, shared by the back ends. ``gram`` finishes
    them all at once in float64 by Lloyd's iteration and then single-point moves; the libraries
    take one problem at a time and serve thousands of images a neuron. What a neuron gets depends
    neither on the other neurons nor on the order of its images.

    K is that of the largest Bayesian information criterion, or comes from splitting clusters in
    two (:func:`polylight.clustering.splits.split`); ``bic`` and ``inertia`` are those of K-means
    for each K either way.

    Args:
        embeddings: float [U, N, D]; valid ones are finite (a NaN makes its neuron's
            criterion NaN), the others are not looked at.
        valid: bool [U, N], which images count.
        keys: int64 [U], random stream of each neuron
            (:func:`polylight.kernels.stream_key`).
        k_min: Smallest number of clusters that ``bic`` may choose, 1..k_max; what splits may
            stop at 1.
        k_max: Largest number of clusters, 1..127; a neuron reaches half its valid at the most,
            and has one cluster where that is less than k_min.
        restarts: Starts for each K, > 0.
        iterations: The most Lloyd iterations of a start, > 0.
        backend: ``gram`` (any device), ``faiss`` or ``cuml`` (CUDA only).
        kernels: For ``gram``: ``auto``, the fast ones of the device; ``torch``, the plain twin;
            or ``triton`` (:func:`polylight.kernels.resolve_kernels`).
        selection: ``bic``; or what says whether a cluster is split: ``xmeans``, the criterion of
            its own points; ``gmeans``, whether they are normal; ``sigclust``, whether one
            Gaussian explains them.
        dims: Dimension that the criterion counts with, where embeddings are coordinates in a
            subspace (:func:`polylight.scoring.points.coordinates`); D if None.

    Returns:
        Labels, number of clusters, criterion and inertia of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or what was asked for is not installed.
    """
    _check(embeddings, valid, keys, k_max, restarts, iterations, backend, selection)
    solver = _Solver(restarts, iterations, backend, resolve_kernels(kernels, embeddings.device))
    num, images, width = embeddings.shape
    dims = width if dims is None else dims
    if not 1 <= k_min <= k_max:
        raise InputError(f"k_min must be in 1..k_max, got {k_min} with k_max {k_max}")
    parts = [_select(*part, dims, k_min) for part in solver.sweep(embeddings, valid, keys, k_max)]
    found = Clusters(*map(torch.cat, zip(*parts, strict=True)))
    if selection == "bic":
        return found
    chunk = max(1, _CHUNK.get(embeddings.device.type, _CHUNK["cpu"]) // (images * width))
    for start in range(0, num, chunk):
        rows = slice(start, start + chunk)
        labels, found.k[rows] = split(
            embeddings[rows],
            valid[rows],
            keys[rows],
            k_max=k_max,
            selection=selection,
            dims=dims,
            two_means=solver.two_means,
            kernels=kernels,
        )
        found.labels[rows] = _largest_first(labels, k_max)
    return found


@needs_float64
def two_means(
    embeddings: Tensor,
    valid: Tensor,
    keys: Tensor,
    restarts: int = 32,
    kernels: Kernels = "auto",
) -> Tensor:
    """Split the images of every neuron in two by k-means, whether or not they fall apart.

    It is :func:`cluster` with back end ``gram`` and K fixed.

    Args:
        embeddings: float [U, N, D].
        valid: bool [U, N], which images count.
        keys: int64 [U], random stream of each neuron.
        restarts: Starts, > 0.
        kernels: Which implementation runs.

    Returns:
        int64 [U, N], 0 or 1, neither empty; all 0 where there are fewer than four valid; -1
        where invalid.

    Raises:
        InputError: A shape, type or name is wrong.
    """
    chosen = resolve_kernels(kernels, embeddings.device)
    _check(embeddings, valid, keys, 2, restarts, _ITERATIONS, "gram", "bic")
    return _Solver(restarts, _ITERATIONS, "gram", chosen).two_means(embeddings, valid, keys)[0]


def _select(
    labels: Tensor, inertia: Tensor, order: Tensor, counts: Tensor, dims: int, k_min: int
) -> Clusters:
    """Choose K by the criterion and give its labels [U, N], the largest cluster first."""
    k_max = labels.shape[1]
    sizes = torch.stack([(labels == c).sum(-1) for c in range(k_max)], dim=-1)  # [U, k_max, K]
    criterion = bic(inertia, sizes, counts, dims)
    k = choose_k(criterion, k_min)
    chosen = labels.take_along_dim((k - 1)[:, None, None], 1).squeeze(1)
    return Clusters(
        _largest_first(_in_order_of_images(chosen, order), k_max),
        k,
        criterion,
        inertia.masked_fill(~reachable(counts, k_max), torch.nan),
    )


def _in_order_of_images(labels: Tensor, order: Tensor) -> Tensor:
    """Labels int64 [U, N] of the images from those of the points and which image each is."""
    return torch.empty_like(order).scatter_(1, order, labels.long())


def _largest_first(labels: Tensor, k_max: int) -> Tensor:
    """Name the clusters of labels int64 [U, N] anew, the largest 0; of equals by first image."""
    images = labels.shape[1]
    member = labels[:, None] == torch.arange(k_max, device=labels.device)[:, None]  # [U, K, N]
    first = torch.where(member, torch.arange(images, device=labels.device), images).amin(-1)
    rank = (member.sum(-1) * (images + 1) - first).argsort(descending=True, stable=True).argsort()
    return torch.where(labels < 0, -1, rank.gather(1, labels.clamp_min(0)))


def _check(
    embeddings: Tensor,
    valid: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
    iterations: int,
    backend: str,
    selection: str,
) -> None:
    if embeddings.dim() != 3 or 0 in embeddings.shape[1:] or not embeddings.is_floating_point():
        raise InputError(
            "embeddings must be floating-point [neurons, images >= 1, dimensions >= 1], got "
            f"{embeddings.dtype} {list(embeddings.shape)}; a single neuron is a batch of one: "
            "embeddings[None]"
        )
    if valid.dtype != torch.bool or valid.shape != embeddings.shape[:2]:
        raise InputError(
            f"valid must be bool {list(embeddings.shape[:2])}, one for each image, got "
            f"{valid.dtype} {list(valid.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != embeddings.shape[:1]:
        raise InputError(
            f"keys must be int64 {list(embeddings.shape[:1])}, one for each neuron, got "
            f"{keys.dtype} {list(keys.shape)}; make them with stream_key"
        )
    if not 1 <= k_max <= MOST_CLUSTERS:
        raise InputError(f"k_max must be in 1..{MOST_CLUSTERS}, got {k_max}")
    if restarts < 1 or iterations < 1:
        raise InputError(
            f"restarts and iterations must be at least 1, got {restarts} and {iterations}"
        )
    if backend not in get_args(Backend):
        raise InputError(
            f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}; "
            f"{nearest(backend, get_args(Backend))}"
        )
    if selection not in get_args(Selection):
        raise InputError(
            f"selection must be one of {', '.join(get_args(Selection))}, got {selection!r}; "
            f"{nearest(selection, get_args(Selection))}"
        )
