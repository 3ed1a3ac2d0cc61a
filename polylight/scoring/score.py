"""The score: the best clustering, weighted by how plainly the images fall into clusters at all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polylight.clustering import Backend, Selection, cluster, gap_statistic
from polylight.kernels import Kernels, needs_float64
from polylight.run.schema import SEPARATION_THRESHOLD
from polylight.scoring.functional import cluster_similarity, effective_features, rao_score
from polylight.scoring.points import (
    Numbers,
    as_tensor,
    check_each,
    check_finite,
    check_images,
    cluster_sums,
)
from polylight.scoring.strength import relative_strength

# Of single channels: cutting 12 to 16 images of one feature into clusters gives a score of 24 to
# 28 % of their mean distance, and less of more images.
_ONE_CLUSTER = 0.25


class Partition(NamedTuple):
    """The best way to part the images of each neuron into more than one cluster.

    Attributes:
        score: float64 [U] in [0, 1], the score S_K of the clusters; a quarter of the mean
            distance for one cluster; NaN for a neuron without images that count.
        mean_distance: float64 [U] in [0, 1], mean pairwise cosine distance of the images; NaN
            likewise.
        k: int64 [U], number of clusters; 1 with fewer than four valid, or where splits end there.
        labels: int64 [U, N], cluster of each image, the largest is 0; -1 where invalid.
        weights: float64 [U, k_max], share of each cluster, sum 1, 0 beyond the k-th.
        bic: float64 [U, k_max], criterion of K = 1..k_max in nats; NaN where out of reach.
    """

    score: Tensor
    mean_distance: Tensor
    k: Tensor
    labels: Tensor
    weights: Tensor
    bic: Tensor


class Score(NamedTuple):
    """The score of each neuron and what it rests on.

    Attributes:
        score: float64 [U] in [0, 1]; NaN for a neuron without images that count.
        clustered_score: float64 [U] in [0, 1], the score S_K of the clusters; NaN likewise.
        mean_distance: float64 [U] in [0, 1], mean pairwise cosine distance of the images; NaN
            likewise.
        k: int64 [U], number of clusters; 1 where one cluster is likelier than several.
        k_eff: float64 [U], effective number of features, 1 / (1 - score).
        labels: int64 [U, N], cluster of each image, the largest is 0; -1 where invalid.
        cluster_weights: float64 [U, k_max], share of each cluster, sum 1, 0 beyond the k-th.
        bic: float64 [U, k_max], criterion of K = 1..k_max in nats; NaN where out of reach.
        separation: float64 [U], how much better the images fall into clusters than those of a
            single mode, in standard deviations (:func:`separation_of`); NaN with
            fewer than four valid images.
        p_value: float64 [U] in (0, 1], of :func:`polylight.clustering.gap_statistic`.
    """

    score: Tensor
    clustered_score: Tensor
    mean_distance: Tensor
    k: Tensor
    k_eff: Tensor
    labels: Tensor
    cluster_weights: Tensor
    bic: Tensor
    separation: Tensor
    p_value: Tensor


def multimodality(separation: Tensor) -> Tensor:
    r"""Weigh several clusters against one.

    .. math:: e = \frac{1}{1 + \exp(4 - T)}

    for the separation T: even odds at T = 4, and e times as good ones for each unit more.

    Args:
        separation: float [...] (:func:`separation_of`).

    Returns:
        The weight e of several clusters, in [0, 1]; 0 where there is no test.
    """
    # torch.sigmoid rounds the last elements of a tensor unlike the others.
    return torch.reciprocal(1.0 + torch.exp(SEPARATION_THRESHOLD - separation)).nan_to_num(nan=0.0)


def weighted_score(clustered_score: Tensor, mean_distance: Tensor, separation: Tensor) -> Tensor:
    r"""Score neurons by how plainly they have more than one feature.

    .. math:: S = e \, S_K + (1 - e) \, S_1, \qquad S_1 = \tfrac{1}{4} D

    with the weight e of :func:`multimodality` and D the mean pairwise distance. Where e is small
    the images are one cloud, which counts for a quarter of D: about what cutting the images of
    one feature into clusters gives. So the score of one feature hardly depends on e, which varies
    from run to run, and is never above 1/4 where e is 0.

    Args:
        clustered_score: float [...] in [0, 1], S_K of the best partition (:func:`partition_score`).
        mean_distance: float [...] in [0, 1], D, the mean pairwise cosine distance of the images.
        separation: float [...] (:func:`separation_of`); NaN where there was no test.

    Returns:
        The score, in [0, 1].
    """
    weight = multimodality(separation)
    return weight * clustered_score + (1.0 - weight) * (_ONE_CLUSTER * mean_distance)


def separation_of(gaps: Tensor, k: Tensor) -> Tensor:
    r"""By how much images fall into K clusters better than those of a single mode.

    .. math:: T = \frac{1}{K - 1} \sum_{j=2}^{K} g_j

    K clusters are there if the images fall better into two, three and so on up to K; any one of
    the gaps is large by chance more often.

    Args:
        gaps: float64 [U, k_max - 1], from :func:`polylight.clustering.gap_statistic`.
        k: int64 [U] in 1..k_max, number of clusters; 1 is taken for 2.

    Returns:
        float64 [U], in standard deviations of what a single mode gives; NaN where there is no test.
    """
    last = (k - 2).clamp_min(0)
    # Sums that are the same whatever comes after them.
    total = gaps.cumsum(1).gather(1, last[:, None]).squeeze(1)
    return total / (last + 1)


@needs_float64
def partition_score(
    embeddings: Tensor,
    activations: Tensor | None,
    *,
    valid: Tensor,
    keys: Tensor,
    baseline: Tensor | None = None,
    k_min: int = 2,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
    dims: int | None = None,
) -> Partition:
    r"""Cluster the images of every neuron and score the clusters S_K.

    .. math:: S_K = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    with :math:`u_i` the unit mean of the normalised embeddings of cluster i and :math:`p_i` its
    share of the images' strengths w = ``max(0, a - baseline) / best`` (:func:`rao_score`). One
    cluster scores a quarter of the mean distance of its images:

    .. math:: S_1 = \tfrac{1}{4} D, \qquad
              D = 1 - \frac{\sum_{i \ne j} w_i w_j \cos\theta_{ij}}{\sum_{i \ne j} w_i w_j}

    Args:
        embeddings: As for :func:`polysemanticity_score`, like all the others but k_min.
        activations: float [U, N] or None.
        valid: bool [U, N].
        keys: int64 [U].
        baseline: float [U] or None.
        k_min: Smallest number of clusters that ``bic`` may choose.
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses K.
        backend: What clusters.
        kernels: Which implementation of ``gram`` runs.
        dims: Dimension that the criterion counts with; D if None.

    Returns:
        The partition of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or the back end is not installed.
    """
    check_images(embeddings, valid)
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found = cluster(
        directions,
        valid=valid,
        keys=keys,
        k_min=min(k_min, k_max),
        k_max=k_max,
        restarts=restarts,
        selection=selection,
        backend=backend,
        kernels=kernels,
        dims=dims,
    )
    if activations is None:
        strength = valid.double()
    else:
        strength = relative_strength(activations, valid, baseline)
    weights = cluster_sums(strength[..., None], found.labels, k_max)[0].squeeze(-1)
    count = strength.sum(1).square() / strength.square().sum(1)
    several = rao_score(weights, cluster_similarity(directions, found.labels, k_max), count)
    mean_distance = _mean_distance(directions, strength, count)
    score = torch.where(found.k > 1, several, _ONE_CLUSTER * mean_distance)
    share = weights / weights.sum(1, keepdim=True)
    return Partition(score, mean_distance, found.k, found.labels, share, found.bic)


@needs_float64
def polysemanticity_score(
    embeddings: Numbers,
    activations: Numbers | None = None,
    *,
    valid: Numbers | None = None,
    keys: Numbers | None = None,
    baseline: Numbers | None = None,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> Score:
    r"""Cluster the images of every neuron and score how many unrelated features drive it.

    .. math:: S = e \, S_K + (1 - e) \, S_1, \qquad
              S_K = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    for the best clustering into more than one (:func:`partition_score`), weighted by e, which says
    how plainly there is more than one (:func:`multimodality`); for the rest a quarter of the mean
    distance of the images (:func:`weighted_score`). The number of clusters is that of the likelier
    case.

    Numbers may be NumPy's; gradients are left behind.

    Args:
        embeddings: float [U, N, D], centred by a reference, not by the
            neuron's own mean, which would make every neuron look polysemantic. They are
            l2-normalised here.
        activations: float [U, N], objective of each image, in the neuron's own unit; None counts
            every image alike.
        valid: bool [U, N], which images count (:func:`strength_gate`); None lets all count.
        keys: int64 [U], random stream of each neuron; None gives all neurons stream 0.
        baseline: float [U], objective of random start images; 0 if None.
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses K where there is more than one cluster: ``bic``; or ``xmeans``,
            ``gmeans`` or ``sigclust``, which may also stop at one cluster
            (:func:`polylight.clustering.cluster`).
        backend: ``gram``, ``faiss`` or ``cuml``.
        kernels: Which implementation of ``gram`` runs.

    Returns:
        Score, clusters and their weights of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, a value of an image that counts is NaN or
            infinite, or the back end is not installed.
    """
    embeddings = as_tensor(embeddings, "embeddings")
    activations = None if activations is None else as_tensor(activations, "activations")
    baseline = None if baseline is None else as_tensor(baseline, "baseline")
    device, (num, images) = embeddings.device, (*embeddings.shape, 0, 0)[:2]
    valid = torch.ones(num, images, dtype=torch.bool, device=device) if valid is None else valid
    keys = torch.zeros(num, dtype=torch.int64, device=device) if keys is None else keys
    valid, keys = as_tensor(valid, "valid"), as_tensor(keys, "keys")
    check_images(embeddings, valid)
    check_finite(embeddings, valid, "embeddings")
    if activations is not None:
        check_each(activations, valid, "activations")
        check_finite(activations, valid, "activations")
    return score_clusters(
        embeddings,
        activations,
        valid=valid,
        keys=keys,
        baseline=baseline,
        k_max=k_max,
        restarts=restarts,
        selection=selection,
        backend=backend,
        kernels=kernels,
    )


def score_clusters(
    embeddings: Tensor,
    activations: Tensor | None,
    *,
    valid: Tensor,
    keys: Tensor,
    baseline: Tensor | None,
    kernels: Kernels = "auto",
    k_max: int = 8,
    **how: Any,
) -> Score:
    """Score checked tensors as :func:`polysemanticity_score`, whose arguments these are.

    Returns:
        Score, clusters and their weights of each neuron; a NaN of a valid image spoils its neuron
        alone.
    """
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found = partition_score(
        directions,
        activations,
        valid=valid,
        keys=keys,
        baseline=baseline,
        k_max=k_max,
        kernels=kernels,
        **how,
    )
    test = gap_statistic(directions, valid, keys, k_max, kernels=kernels)
    separation = separation_of(test.gaps, found.k)
    score = weighted_score(found.score, found.mean_distance, separation)
    single = ~(separation > SEPARATION_THRESHOLD)
    first = torch.zeros_like(found.weights).index_fill_(1, keys.new_zeros(1), 1.0)
    # There is no share of nothing.
    first = first.masked_fill(found.weights.isnan(), torch.nan)
    return Score(
        score,
        found.score,
        found.mean_distance,
        found.k.masked_fill(single, 1),
        effective_features(score),
        torch.where(single[:, None] & valid, 0, found.labels),
        torch.where(single[:, None], first, found.weights),
        found.bic,
        separation,
        test.p_value,
    )


def _mean_distance(directions: Tensor, strength: Tensor, count: Tensor) -> Tensor:
    """Weighted mean cosine distance of two images of each neuron, float64 [U]; 0 for one image."""
    # By the length of the sum: sum_ij w_i w_j cos_ij = |sum_i w_i u_i|^2.
    weighted = (strength[..., None] * directions).masked_fill(strength[..., None] == 0.0, 0.0)
    everything = torch.zeros_like(strength, dtype=torch.int64)
    total = cluster_sums(weighted, everything, 1)[0].squeeze(1).square().sum(1)
    alone = strength.square().sum(1)
    alike = (total - alone) / (strength.sum(1).square() - alone)
    return torch.where(count > 1.0, 1.0 - alike, count - 1.0).clamp(0.0, 1.0)
