"""Scores as pure functions of clusters."""

import math

import torch
from torch import Tensor

from polylight.errors import InputError
from polylight.kernels import needs_float64
from polylight.scoring.points import check_each, check_images, cluster_sums, cosines, unit_points


@needs_float64
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


@needs_float64
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


@needs_float64
def paper_score(embeddings: Tensor, labels: Tensor, k: Tensor, valid: Tensor) -> Tensor:
    r"""The Alic et al. (2025) score, kept for comparison.

    .. math:: S = C + D - C D, \quad C = \frac{K - 1}{I - 1}, \quad
              D = \operatorname{mean}_{i<j} \frac{\arccos(\cos\theta_{ij})}{\pi}
              \frac{2 \min(m_i, m_j)}{m_i + m_j}

    for I images and K clusters with centroids of norm m_i at angles theta_ij (Alic et al. 2025,
    "Quantifying Polysemanticity in Convolutional Neural Networks"). Undefined there: D is 0 at
    K = 1, C is 0 at I = 1, and a centroid of norm 0 is at a right angle to all with balance 0.

    Args:
        embeddings: float [U, N, D], raw, neither centred nor normalised.
        labels: int64 [U, N], cluster of each image in 0..k-1, -1 where invalid.
        k: int64 [U], number of clusters.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U] in [0, 1]; NaN for a neuron without valid or with one for an embedding that is
        not finite.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, valid)
    check_each(labels, valid, "labels")
    # A neuron has no more clusters than images.
    width = embeddings.shape[1]
    points = embeddings.double().masked_fill(~valid[..., None], 0.0)
    sums, sizes = cluster_sums(points, labels.masked_fill(~valid, -1), width)
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
    images = valid.sum(1)
    count = (k - 1).double() / (images - 1).clamp_min(1)
    score: Tensor = count + distance - count * distance
    # At K = 1 the embeddings leave no trace in the formula.
    unknown = ~points.isfinite().all(-1).all(-1)
    return score.masked_fill(unknown | (images == 0), torch.nan)


@needs_float64
def cluster_similarity(embeddings: Tensor, labels: Tensor, k: int) -> Tensor:
    """Compare the clusters of each neuron by the cosines of their mean directions.

    Args:
        embeddings: float [U, N, D]; they are l2-normalised here.
        labels: int64 [U, N], cluster of each image in 0..k-1, -1 where invalid.
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
