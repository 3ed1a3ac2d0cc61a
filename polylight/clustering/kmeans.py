"""From embeddings to clusters: one interface over three back ends."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from polylight.clustering import cuml, faiss
from polylight.clustering.bic import bic, choose_k, reachable
from polylight.errors import InputError, nearest
from polylight.kernels import centred_gram, gram_kmeans
from polylight.kernels.choice import Chosen, Kernels, resolve_kernels
from polylight.kernels.seeding import draw

Backend = Literal["gram", "faiss", "cuml"]
_LIBRARIES = {"faiss": faiss.solve, "cuml": cuml.solve}
# Numbers held per chunk of neurons: what fits the cache of a CPU, and half a GiB on a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**26}
# Labels travel as int8.
_K_LIMIT = 127


class Clusters(NamedTuple):
    """The clusters of each neuron's images.

    Attributes:
        labels: int64 [U, N], 0 is the largest cluster (of equals the one with the first image);
            -1 where the image has no vote.
        k: int64 [U], number of clusters, the one with the largest criterion; 1 where there are
            fewer than two votes.
        bic: float64 [U, k_max], criterion for K = 1..k_max in nats; NaN where K is out of reach.
        inertia: float64 [U, k_max], sum of squared distances to the cluster means; NaN likewise.
    """

    labels: Tensor
    k: Tensor
    bic: Tensor
    inertia: Tensor


def cluster(
    embeddings: Tensor,
    *,
    votes: Tensor,
    keys: Tensor,
    k_max: int = 8,
    restarts: int = 32,
    iterations: int = 16,
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> Clusters:
    """Cluster the images of every neuron by k-means, K by the Bayesian information criterion.

    Each K has ``restarts`` starts by greedy k-means++, shared by the back ends. ``gram`` finishes
    them all at once in float64 by Lloyd's iteration and then single-point moves; the libraries
    take one problem at a time and serve thousands of images a neuron. What a neuron gets depends
    neither on the other neurons nor on the order of its images.

    Args:
        embeddings: float [U, N, D]; those with a vote are finite (a NaN makes its neuron's
            criterion NaN), the others are not looked at.
        votes: bool [U, N], which images count.
        keys: int64 [U], random stream of each neuron
            (:func:`polylight.kernels.philox.stream_key`).
        k_max: Largest number of clusters, 1..127; a neuron reaches half its votes at the most.
        restarts: Starts for each K, > 0.
        iterations: The most Lloyd iterations of a start, > 0.
        backend: ``gram`` (any device), ``faiss`` or ``cuml`` (CUDA only).
        kernels: For ``gram``: ``auto``, the fast ones of the device; ``torch``, the plain twin;
            or ``triton`` (:func:`polylight.kernels.choice.resolve_kernels`).

    Returns:
        Labels, number of clusters, criterion and inertia of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or what was asked for is not installed.
    """
    _check(embeddings, votes, keys, k_max, restarts, iterations, backend)
    chosen = resolve_kernels(kernels, embeddings.device)
    num, images, dims = embeddings.shape
    budget = _CHUNK.get(embeddings.device.type, _CHUNK["cpu"])
    solved = min(k_max, max(1, images // 2))
    k = torch.arange(1, k_max + 1, device=embeddings.device)
    chunk = max(1, budget // (images * (restarts * k_max + images)))
    parts = []
    for start in range(0, max(num, 1), chunk):
        rows = slice(start, start + chunk)
        batch = embeddings[rows], votes[rows], keys[rows]
        if backend == "gram":
            labels, inertia, order = _by_gram(*batch, solved, restarts, iterations, chosen)
        else:
            points, order = centred_gram.centre(*batch[:2])
            labels, inertia = _LIBRARIES[backend](
                points, batch[1].gather(1, order), batch[2], solved, restarts, iterations
            )
        # K that no neuron of so many images can reach are not worked out.
        labels = labels[:, (k.clamp_max(solved) - 1)]
        inertia = inertia[:, (k.clamp_max(solved) - 1)]
        parts.append(_select(labels, inertia, order, batch[1].sum(-1), dims))
    return Clusters(*map(torch.cat, zip(*parts, strict=True)))


def _by_gram(
    embeddings: Tensor,
    votes: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
    iterations: int,
    kernels: Chosen,
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels int8 [U, k_max, N] and inertia [U, k_max] for each K, and the order of the points."""
    counts = votes.sum(-1)
    limits = reachable(counts, k_max).sum(-1)
    uniform = draw(keys, k_max, restarts)
    if kernels == "numba":
        from polylight.kernels import centred_gram_numba, gram_kmeans_numba

        gram, order = centred_gram_numba.centred_gram(embeddings, votes)
        return *gram_kmeans_numba.solve(gram, counts, limits, uniform, k_max, iterations), order
    gram, order = centred_gram.centred_gram(embeddings, votes)
    if kernels == "triton":
        from polylight.kernels import gram_kmeans_triton as triton

        # Of more images products take most of the time, and the twin's are as fast as any.
        if triton.fits(embeddings.shape[1], k_max):
            return *triton.solve(gram, counts, limits, uniform, k_max, iterations), order
    return *gram_kmeans.solve(gram, counts, limits, uniform, k_max, iterations), order


def _select(labels: Tensor, inertia: Tensor, order: Tensor, counts: Tensor, dims: int) -> Clusters:
    """Choose K and give its labels [U, N] in the order of the images, the largest cluster first."""
    k_max, images = labels.shape[1:]
    clusters = torch.arange(k_max, device=labels.device)
    sizes = torch.stack([(labels == c).sum(-1) for c in range(k_max)], dim=-1)  # [U, k_max, K]
    criterion = bic(inertia, sizes, counts, dims)
    k = choose_k(criterion)
    chosen = labels.take_along_dim((k - 1)[:, None, None], 1).squeeze(1).long()
    chosen = torch.empty_like(chosen).scatter_(1, order, chosen)
    member = chosen[:, None] == clusters[:, None]  # [U, K, N]
    first = torch.where(member, torch.arange(images, device=labels.device), images).amin(-1)
    rank = (member.sum(-1) * (images + 1) - first).argsort(descending=True, stable=True).argsort()
    chosen = torch.where(chosen < 0, -1, rank.gather(1, chosen.clamp_min(0)))
    return Clusters(chosen, k, criterion, inertia.masked_fill(~reachable(counts, k_max), torch.nan))


def _check(
    embeddings: Tensor,
    votes: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
    iterations: int,
    backend: str,
) -> None:
    if embeddings.dim() != 3 or 0 in embeddings.shape[1:] or not embeddings.is_floating_point():
        raise InputError(
            "embeddings must be floating-point [neurons, images >= 1, dimensions >= 1], got "
            f"{embeddings.dtype} {list(embeddings.shape)}; a single neuron is a batch of one: "
            "embeddings[None]"
        )
    if votes.dtype != torch.bool or votes.shape != embeddings.shape[:2]:
        raise InputError(
            f"votes must be bool {list(embeddings.shape[:2])}, one for each image, got "
            f"{votes.dtype} {list(votes.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != embeddings.shape[:1]:
        raise InputError(
            f"keys must be int64 {list(embeddings.shape[:1])}, one for each neuron, got "
            f"{keys.dtype} {list(keys.shape)}; make them with stream_key"
        )
    if not 1 <= k_max <= _K_LIMIT:
        raise InputError(f"k_max must be in 1..{_K_LIMIT}, got {k_max}")
    if restarts < 1 or iterations < 1:
        raise InputError(
            f"restarts and iterations must be at least 1, got {restarts} and {iterations}"
        )
    if backend not in get_args(Backend):
        raise InputError(
            f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}; "
            f"{nearest(backend, get_args(Backend))}"
        )
