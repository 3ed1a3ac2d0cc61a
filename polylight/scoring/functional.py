"""Scores as pure functions of clusters."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from polylight.clustering import Backend, Selection, cluster, one_mode_test
from polylight.errors import InputError
from polylight.evidence import EVEN_ODDS
from polylight.kernels.choice import Kernels
from polylight.scoring.points import check_each, check_images, cluster_sums, cosines, unit_points
from polylight.scoring.strength import relative_strength


class Partition(NamedTuple):
    """The best way to part the images of each neuron into more than one cluster.

    Attributes:
        score: float64 [U] in [0, 1], the score if the clusters were sure; NaN for a neuron
            without images that count.
        k: int64 [U], number of clusters; 1 with fewer than four votes, or where splits end there.
        labels: int64 [U, N], cluster of each image, the largest is 0; -1 without a vote.
        weights: float64 [U, k_max], share of each cluster, sum 1, 0 beyond the k-th.
        bic: float64 [U, k_max], criterion of K = 1..k_max in nats; NaN where out of reach.
    """

    score: Tensor
    k: Tensor
    labels: Tensor
    weights: Tensor
    bic: Tensor


class Score(NamedTuple):
    """The score of each neuron and what it rests on.

    Attributes:
        score: float64 [U] in [0, 1]; NaN for a neuron without images that count.
        k: int64 [U], number of clusters; 1 where one mode is likelier than several.
        k_eff: float64 [U], effective number of features, 1 / (1 - score).
        labels: int64 [U, N], cluster of each image, the largest is 0; -1 without a vote.
        cluster_weights: float64 [U, k_max], share of each cluster, sum 1, 0 beyond the k-th.
        bic: float64 [U, k_max], criterion of K = 1..k_max in nats; NaN where out of reach.
        separation: float64 [U], how much better the images fall into clusters than one mode's
            would, in standard deviations (:func:`polylight.clustering.one_mode_test`); NaN with
            fewer than four votes.
        p_value: float64 [U] in (0, 1], of the same test.
    """

    score: Tensor
    k: Tensor
    k_eff: Tensor
    labels: Tensor
    cluster_weights: Tensor
    bic: Tensor
    separation: Tensor
    p_value: Tensor


def leinster_cobbold_score(weights: Tensor, similarity: Tensor, order: float = 1.0) -> Tensor:
    r"""One minus the inverse of the effective number of features.

    .. math:: S_q = 1 - \frac{1}{D_q}, \qquad
              D_q = \Bigl(\sum_i p_i (Zp)_i^{q-1}\Bigr)^{\frac{1}{1-q}}, \qquad
              Z_{ij} = \max(0, \cos\theta_{ij}), \quad p = w / \sum w

    with the limit :math:`D_1 = \exp(-\sum_i p_i \log (Zp)_i)` (Leinster & Cobbold 2012,
    "Measuring diversity"). The order q says how much rare features count: 0 as much as any
    other, 2 by the chance of meeting them, infinity not at all. Splitting a feature into
    identical ones changes nothing.

    Args:
        weights: float [U, K], >= 0, strength of each cluster or image; 0 where there is none.
        similarity: float [U, K, K], cosines of their directions, 1 on the diagonal.
        order: q, in [0, inf].

    Returns:
        float64 [U] in [0, 1 - 1/K], K the clusters of positive weight; NaN where there is none.

    Raises:
        InputError: The shapes do not fit or the order is out of range.
    """
    shape = (*weights.shape, weights.shape[-1])
    if weights.dim() != 2 or similarity.shape != shape:
        raise InputError(
            "weights must be [neurons, clusters] and similarity [neurons, clusters, clusters], "
            f"got {list(weights.shape)} and {list(similarity.shape)}"
        )
    if not order >= 0.0:
        raise InputError(f"order must be in [0, inf], the q of the diversity D_q, got {order}")
    share = weights.double() / weights.double().sum(1, keepdim=True)
    common = (share[:, None] @ similarity.double().clamp_min(0.0)).squeeze(1)  # [U, K]
    # The mean of powers is taken relative to the largest, or it would vanish at high orders.
    absent = ~(share > 0)
    most = common.masked_fill(absent, 0.0).amax(1, keepdim=True)
    ratio = (common / most).masked_fill(absent, 1.0)
    if order == 1.0:
        mean = (share * ratio.log()).sum(1).exp()
    else:
        mean = (share * ratio.pow(order - 1.0)).sum(1).pow(1.0 / (order - 1.0))
    return _bounded(1.0 - mean * most[:, 0], weights)


def rao_score(weights: Tensor, similarity: Tensor, num_images: Tensor | None = None) -> Tensor:
    r"""Expected dissimilarity of two features that drive the neuron.

    .. math:: S = 1 - \sum_{ij} p_i p_j \max(0, \cos\theta_{ij}), \qquad p = w / \sum w

    Rao's quadratic entropy (Rao 1982) over clusters, which is :func:`leinster_cobbold_score` of
    order 2: 0 for one feature, 1 - 1/K for K equal features at right angles.

    Args:
        weights: float [U, K], >= 0, strength of each cluster; 0 where there is none.
        similarity: float [U, K, K], cosines of the cluster directions, 1 on the diagonal.
        num_images: float or int [U], number n of images behind the weights: S is multiplied by
            n / (n - 1), which removes its bias for images drawn at random, and kept within the
            1 - 1/K that K clusters can reach. For images of unequal weight n is
            ``(sum w)^2 / sum w^2``. None gives the S of the weights as they are.

    Returns:
        float64 [U] in [0, 1 - 1/K], K the clusters of positive weight; NaN where there is none.

    Raises:
        InputError: The shapes do not fit.
    """
    score = leinster_cobbold_score(weights, similarity, order=2.0)
    if num_images is None:
        return score
    count = num_images.double()
    # With one image there is one cluster and S is 0 whatever the factor.
    factor = torch.where(count > 1.0, count / (count - 1.0), 1.0)
    return _bounded(score * factor, weights)


def effective_features(score: Tensor) -> Tensor:
    """Number of equal, unrelated features that would give this score: ``1 / (1 - S)``.

    The order-2 diversity of Leinster & Cobbold 2012.

    Args:
        score: float [U] in [0, 1], from :func:`rao_score`.

    Returns:
        float [U] in [1, K].
    """
    return torch.reciprocal(1.0 - score)


def paper_score(embeddings: Tensor, labels: Tensor, k: Tensor, votes: Tensor) -> Tensor:
    r"""Score of the original method, kept for comparison.

    .. math:: S = C + D - C D, \quad C = \frac{K - 1}{I - 1}, \quad
              D = \operatorname{mean}_{i<j} \frac{\arccos(\cos\theta_{ij})}{\pi}
              \frac{2 \min(m_i, m_j)}{m_i + m_j}

    for I images and K clusters with centroids of norm m_i at angles theta_ij (Alic et al. 2025,
    "Quantifying Polysemanticity in Convolutional Neural Networks"). Undefined there: D is 0 at
    K = 1, C is 0 at I = 1, and a centroid of norm 0 is at a right angle to all with balance 0.

    Args:
        embeddings: float [U, N, D], raw, neither centred nor normalised.
        labels: int64 [U, N], cluster of each image in 0..k-1, -1 without a vote.
        k: int64 [U], number of clusters.
        votes: bool [U, N], which images count.

    Returns:
        float64 [U] in [0, 1]; NaN for a neuron without votes or with one for an embedding that is
        not finite.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, votes)
    check_each(labels, votes, "labels")
    # A neuron has no more clusters than images.
    width = embeddings.shape[1]
    points = embeddings.double().masked_fill(~votes[..., None], 0.0)
    sums, sizes = cluster_sums(points, labels.masked_fill(~votes, -1), width)
    centroids = sums / sizes.clamp_min(1.0)[..., None]
    norms = centroids.norm(dim=-1)
    cosine = cosines(centroids).clamp(-1.0, 1.0)
    pair = norms[:, :, None] + norms[:, None]
    balance = 2.0 * torch.minimum(norms[:, :, None], norms[:, None]) / pair
    balance = balance.masked_fill(pair == 0, 0.0)
    there = sizes > 0
    pairs = (there[:, :, None] & there[:, None]).triu(1)
    apart = (torch.acos(cosine) / math.pi * balance).masked_fill(~pairs, 0.0)
    distance = apart.sum((1, 2)) / pairs.sum((1, 2)).clamp_min(1)
    images = votes.sum(1)
    count = (k - 1).double() / (images - 1).clamp_min(1)
    score: Tensor = count + distance - count * distance
    # At K = 1 the embeddings leave no trace in the formula.
    unknown = ~points.isfinite().all(-1).all(-1)
    return score.masked_fill(unknown | (images == 0), torch.nan)


def mode_evidence(separation: Tensor) -> Tensor:
    r"""Weigh several modes against one.

    .. math:: e = \frac{1}{1 + \exp(4 - T)}

    for the separation T: even odds at T = 4, and e times as much for each unit more.

    Args:
        separation: float [...], from :func:`polylight.clustering.one_mode_test`.

    Returns:
        The weight of several modes, in [0, 1]; 0 where there is no test.
    """
    # torch.sigmoid rounds the last elements of a tensor unlike the others.
    return torch.reciprocal(1.0 + torch.exp(EVEN_ODDS - separation)).nan_to_num(nan=0.0)


def partition_score(
    embeddings: Tensor,
    activations: Tensor | None,
    *,
    votes: Tensor,
    keys: Tensor,
    baseline: Tensor | None = None,
    k_min: int = 2,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> Partition:
    r"""Cluster the images of every neuron and score the clusters as if they were sure.

    .. math:: S_K = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    with :math:`u_i` the unit mean of the normalised embeddings of cluster i and :math:`p_i` its
    share of the images' strengths ``max(0, a - baseline) / best`` (:func:`rao_score`).

    Args:
        embeddings: As for :func:`polysemanticity_score`, like all the others but k_min.
        activations: float [U, N] or None.
        votes: bool [U, N].
        keys: int64 [U].
        baseline: float [U] or None.
        k_min: Smallest number of clusters that ``bic`` may choose.
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses K.
        backend: What clusters.
        kernels: Which implementation of ``gram`` runs.

    Returns:
        The partition of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or the back end is not installed.
    """
    check_images(embeddings, votes)
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found = cluster(
        directions,
        votes=votes,
        keys=keys,
        k_min=min(k_min, k_max),
        k_max=k_max,
        restarts=restarts,
        selection=selection,
        backend=backend,
        kernels=kernels,
    )
    if activations is None:
        strength = votes.double()
    else:
        strength = relative_strength(activations, votes, baseline)
    weights = cluster_sums(strength[..., None], found.labels, k_max)[0].squeeze(-1)
    count = strength.sum(1).square() / strength.square().sum(1)
    score = rao_score(weights, cluster_similarity(directions, found.labels, k_max), count)
    share = weights / weights.sum(1, keepdim=True)
    return Partition(score, found.k, found.labels, share, found.bic)


def polysemanticity_score(
    embeddings: Tensor,
    activations: Tensor | None = None,
    *,
    votes: Tensor | None = None,
    keys: Tensor | None = None,
    baseline: Tensor | None = None,
    k_max: int = 8,
    restarts: int = 32,
    selection: Selection = "bic",
    backend: Backend = "gram",
    kernels: Kernels = "auto",
) -> Score:
    r"""Cluster the images of every neuron and score how many unrelated features drive it.

    .. math:: S = e \, S_K, \qquad
              S_K = \frac{n}{n-1} \Bigl(1 - \sum_{ij} p_i p_j \max(0, u_i \cdot u_j)\Bigr)

    for the best clustering into more than one (:func:`partition_score`), which counts by the
    evidence e that there is more than one mode at all (:func:`mode_evidence`): the mean over both
    cases, since one mode has the score 0. The number of clusters is that of the likelier case.

    Args:
        embeddings: float [U, N, D], centred by a reference, not by the
            neuron's own mean, which would make every neuron look polysemantic. They are
            l2-normalised here.
        activations: float [U, N], objective of each image, in the neuron's own unit; None counts
            every image alike.
        votes: bool [U, N], which images count (:func:`strength_gate`); None lets all count.
        keys: int64 [U], random stream of each neuron; None gives all neurons stream 0.
        baseline: float [U], objective of random start images; 0 if None.
        k_max: Largest number of clusters, 1..127.
        restarts: Starts of k-means for each K, > 0.
        selection: What chooses K where there is more than one mode: ``bic``; or ``xmeans``,
            ``gmeans`` or ``sigclust``, which may also stop at one cluster
            (:func:`polylight.clustering.cluster`).
        backend: ``gram``, ``faiss`` or ``cuml``.
        kernels: Which implementation of ``gram`` runs.

    Returns:
        Score, clusters and their weights of each neuron.

    Raises:
        InputError: A shape, type or name is wrong, or the back end is not installed.
    """
    if votes is None:
        votes = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    check_images(embeddings, votes)
    if keys is None:
        keys = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
    directions = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    found = partition_score(
        directions,
        activations,
        votes=votes,
        keys=keys,
        baseline=baseline,
        k_max=k_max,
        restarts=restarts,
        selection=selection,
        backend=backend,
        kernels=kernels,
    )
    test = one_mode_test(directions, votes, keys, k_max, kernels=kernels)
    score = found.score * mode_evidence(test.separation)
    single = ~(test.separation > EVEN_ODDS)
    first = torch.zeros_like(found.weights).index_fill_(1, keys.new_zeros(1), 1.0)
    # There is no share of nothing.
    first = first.masked_fill(found.weights.isnan(), torch.nan)
    return Score(
        score,
        found.k.masked_fill(single, 1),
        effective_features(score),
        torch.where(single[:, None] & votes, 0, found.labels),
        torch.where(single[:, None], first, found.weights),
        found.bic,
        test.separation,
        test.p_value,
    )


def cluster_similarity(embeddings: Tensor, labels: Tensor, k: int) -> Tensor:
    """Compare the clusters of each neuron by the cosines of their mean directions.

    Args:
        embeddings: float [U, N, D]; they are l2-normalised here.
        labels: int64 [U, N], cluster of each image in 0..k-1, -1 without a vote.
        k: Largest number of clusters.

    Returns:
        float64 [U, k, k] in [-1, 1], 1 on the diagonal; 0 beside it for a cluster without images
        or whose directions cancel.
    """
    return cosines(cluster_sums(unit_points(embeddings, labels >= 0), labels, k)[0])


def _bounded(score: Tensor, weights: Tensor) -> Tensor:
    """Keep a score [U] within the 0 and 1 - 1/K that K clusters of positive weight can reach."""
    count = (weights > 0).sum(1).double()
    most = torch.where(count == 0, torch.nan, 1.0 - 1.0 / count)
    return torch.minimum(score.clamp_min(0.0), most)
