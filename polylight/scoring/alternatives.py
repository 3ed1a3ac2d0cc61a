"""Scores of other authors on the same images, to compare ours with."""

from typing import Any, get_args

import torch
from torch import Tensor

from polylight.clustering import Backend, Selection, cluster, two_means
from polylight.kernels import Kernels, needs_float64
from polylight.scoring.functional import (
    cluster_similarity,
    leinster_cobbold_score,
    paper_score,
)
from polylight.scoring.halves import semanticlens_score, silhouette_score
from polylight.scoring.points import check_each, check_images, cosines, unit_points
from polylight.scoring.score import (
    multimodality,
    partition_score,
    score_clusters,
    weighted_score,
)

SELECTIONS: tuple[Selection, ...] = get_args(Selection)


@needs_float64
def mean_distance_score(embeddings: Tensor, valid: Tensor) -> Tensor:
    r"""Mean cosine distance of two images of a neuron, without clusters.

    .. math:: S = 1 - \frac{1}{n (n - 1)} \sum_{i \ne j} \cos\theta_{ij}

    which is one minus the clarity of Dreyer et al. 2025, "Mechanistic understanding and
    validation of large AI models with SemanticLens".

    Args:
        embeddings: float [U, N, D]; they are l2-normalised here.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U] in [0, n / (n - 1)]; NaN for a neuron with fewer than two valid.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, valid)
    return _distance(embeddings, valid.double())


@needs_float64
def weighted_ms_score(embeddings: Tensor, activations: Tensor, valid: Tensor) -> Tensor:
    r"""Mean cosine distance of two images of a neuron, weighted by their activations.

    .. math:: S = 1 - \frac{\sum_{i<j} a_i a_j \cos\theta_{ij}}{\sum_{i<j} a_i a_j}, \qquad
              a = \frac{\alpha - \min \alpha}{\max \alpha - \min \alpha}

    for activations alpha: one minus the monosemanticity score MS of Pach et al. 2025, "Sparse
    Autoencoders Learn Monosemantic Features in Vision-Language Models". There the minimum and
    maximum are over all the photos of a data set; here, where each image was made for the neuron,
    over its valid images, so the weakest of them has no weight.

    Args:
        embeddings: float [U, N, D]; they are l2-normalised here.
        activations: float [U, N], how strongly each image drives the neuron, in its own unit.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U] in [0, 2]; NaN for a neuron with fewer than two images above its weakest, and
        so for one with fewer than three valid.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, valid)
    check_each(activations, valid, "activations")
    strength = activations.double()
    low = strength.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = strength.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return _distance(embeddings, torch.where(valid, (strength - low) / (high - low), 0.0))


@needs_float64
def vendi_score(embeddings: Tensor, valid: Tensor) -> Tensor:
    r"""One minus the inverse of the effective number of different images, without clusters.

    .. math:: S = 1 - \frac{1}{V}, \qquad V = \exp\Bigl(-\sum_i \lambda_i \log \lambda_i\Bigr)

    with :math:`\lambda` the eigenvalues of the matrix of :math:`\cos\theta_{ij} / n` (Friedman &
    Dieng 2023, "The Vendi Score"). It takes opposite embeddings for alike, and the spread within
    one feature for diversity.

    Args:
        embeddings: float [U, N, D]; they are l2-normalised here.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U] in [0, 1 - 1/n]; NaN for a neuron without valid.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, valid)
    count = valid.sum(1)
    both = valid[:, :, None] & valid[:, None]
    gram = cosines(unit_points(embeddings, valid)).masked_fill(~both, 0.0)
    unknown = gram.isnan().any(-1).any(-1)
    # The eigenvalue solver raises on NaN, for all neurons at once.
    gram = gram.masked_fill(unknown[:, None, None], 0.0) / count.clamp_min(1)[:, None, None]
    share = torch.linalg.eigvalsh(gram).clamp_min(0.0)
    score = 1.0 - torch.xlogy(share, share).sum(1).exp()
    return score.clamp_min(0.0).masked_fill(unknown | (count == 0), torch.nan)


@needs_float64
def score_table(
    embeddings_framed: Tensor,
    embeddings_raw: Tensor,
    activations: Tensor,
    valid: Tensor,
    keys: Tensor,
    *,
    finished: Tensor | None = None,
    baseline: Tensor | None = None,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> dict[str, Tensor]:
    """Score a batch of neurons in every way, each on the same images.

    That of Alic et al. (2025), ``paper``, sees the raw embeddings of all the finished images:
    it has neither reference nor gate. All others see the centred, valid ones:
    ``leinster_cobbold_0`` to ``_2`` the clusters of ``polylight``, whose own score is that of
    order 2 with the correction for the number of images, weighted by the separation
    (:func:`polylight.scoring.weighted_score`); ``clustered`` that of the clusters alone,
    ``clustered_times_weight`` the same times that weight, so that one cloud scores 0; ``bic_alone``
    that of the clusters, where the criterion may choose K = 1 instead; ``xmeans``, ``gmeans`` and
    ``sigclust`` (and ``bic``, where it is not ours) the same score as ours with K chosen in those
    ways; ``semanticlens`` and ``silhouette_2`` the two clusters of :func:`two_means`; the others
    no clusters.

    Args:
        embeddings_framed: float [U, N, D], centred by a reference; they
            are l2-normalised here.
        embeddings_raw: float [U, N, D], of the same images.
        activations: float [U, N], objective of each image, in the neuron's own unit.
        valid: bool [U, N], which images count (:func:`polylight.scoring.strength_gate`).
        keys: int64 [U], random stream of each neuron.
        finished: bool [U, N], images that exist, for ``paper``; None takes the valid ones.
        baseline: float [U], objective of random start images, for the weights of clusters; 0 if
            None.
        k_max: Largest number of clusters where it is not fixed, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses the K of ``polylight``.
        backend: ``gram``, ``faiss`` or ``cuml``, where the number of clusters is not fixed.
        kernels: Which implementation of ``gram`` runs.

    Returns:
        float64 [U] by name: polylight, clustered, clustered_times_weight, bic_alone, xmeans,
        gmeans, sigclust, paper, mean_distance, semanticlens, weighted_ms, leinster_cobbold_0,
        leinster_cobbold_1, leinster_cobbold_2, vendi, silhouette_2. A score is NaN where a neuron
        has too few valid for it.

    Raises:
        InputError: A shape, type or name is wrong, or the back end is not installed.

    Note:
        Some ten tensors of float64 [U, N, N] are alive at once.
    """
    check_images(embeddings_framed, valid)
    finished = valid if finished is None else finished
    check_images(embeddings_raw, finished)
    unit = torch.nn.functional.normalize(embeddings_framed.double(), dim=-1)

    how: dict[str, Any] = {
        "k_max": k_max,
        "restarts": restarts,
        "backend": backend,
        "kernels": kernels,
    }
    given: dict[str, Any] = {"valid": valid, "keys": keys, "baseline": baseline, **how}
    ours = score_clusters(unit, activations, selection=selection, **given)
    others = [name for name in SELECTIONS if name != selection]
    plain = cluster(embeddings_raw, valid=finished, keys=keys, **how)
    halves = two_means(unit, valid, keys, restarts, kernels)
    weights, similarity = ours.cluster_weights, cluster_similarity(unit, ours.labels, k_max)
    return {
        "polylight": ours.score,
        "clustered": ours.clustered_score,
        "clustered_times_weight": ours.clustered_score * multimodality(ours.separation),
        "bic_alone": partition_score(unit, activations, k_min=1, **given).score,
        **{
            name: weighted_score(
                partition_score(unit, activations, selection=name, **given).score,
                ours.mean_distance,
                ours.separation,
            )
            for name in others
        },
        "paper": paper_score(embeddings_raw, plain.labels, plain.k, finished),
        "mean_distance": mean_distance_score(unit, valid),
        "semanticlens": semanticlens_score(unit, halves, valid, activations),
        "weighted_ms": weighted_ms_score(unit, activations, valid),
        "leinster_cobbold_0": leinster_cobbold_score(weights, similarity, 0.0),
        "leinster_cobbold_1": leinster_cobbold_score(weights, similarity, 1.0),
        "leinster_cobbold_2": leinster_cobbold_score(weights, similarity, 2.0),
        "vendi": vendi_score(unit, valid),
        "silhouette_2": silhouette_score(unit, halves, valid),
    }


def _distance(embeddings: Tensor, weights: Tensor) -> Tensor:
    """One minus the weighted mean cosine of two different images: float64 [U]."""
    points = unit_points(embeddings, weights != 0.0)
    same = torch.eye(weights.shape[1], dtype=torch.bool, device=weights.device)
    pair = (weights[:, :, None] * weights[:, None]).masked_fill(same, 0.0)
    alike = (pair * (points @ points.mT)).sum((1, 2)) / pair.sum((1, 2))
    return (1.0 - alike).clamp_min(0.0)
