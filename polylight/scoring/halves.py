"""Scores of the two halves of a neuron's images, whether or not they fall apart."""

import torch
from torch import Tensor

from polylight.kernels import needs_float64
from polylight.scoring.points import check_each, check_images, cluster_sums, cosines, unit_points

# Samples that SemanticLens looks at where there are no two clusters.
_FALLBACK_SAMPLES = 10


@needs_float64
def semanticlens_score(
    embeddings: Tensor, labels: Tensor, valid: Tensor, activations: Tensor | None = None
) -> Tensor:
    r"""Cosine distance of the centres of two clusters.

    .. math:: S = 1 - \cos(c_1, c_2)

    Where either has fewer than two images it is instead the mean over ten images of
    :math:`1 - \cos(\bar x, x_i)`, :math:`\bar x` the mean of all (Dreyer et al. 2025,
    "Mechanistic understanding and validation of large AI models with SemanticLens"). Neither the
    number of clusters nor their sizes play a part.

    Args:
        embeddings: float [U, N, D], taken as they are.
        labels: int64 [U, N], 0 or 1, from :func:`two_means` of the same embeddings; -1 where
            invalid.
        valid: bool [U, N], which images count.
        activations: float [U, N], by which the ten strongest images are taken; None takes the
            first ten, as the authors do, whose images come with the strongest first.

    Returns:
        float64 [U] in [0, 2]; NaN for a neuron with fewer than two valid.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, valid)
    check_each(labels, valid, "labels")
    points = embeddings.double().masked_fill(~valid[..., None], 0.0)
    sums, sizes = cluster_sums(points, labels.masked_fill(~valid, -1), 2)
    apart = 1.0 - cosines(sums)[:, 0, 1]

    strength = torch.zeros_like(points[..., 0])
    if activations is not None:
        check_each(activations, valid, "activations")
        strength = activations.double()
    strength = strength.masked_fill(~valid, -torch.inf)
    rank = strength.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    taken = valid & (rank < _FALLBACK_SAMPLES)
    unit = torch.nn.functional.normalize(points, dim=-1)
    middle = torch.nn.functional.normalize(points.sum(1), dim=-1)
    alike = (unit @ middle[..., None]).squeeze(-1).masked_fill(~taken, 0.0)
    around = 1.0 - alike.sum(1) / taken.sum(1)

    score = torch.where(sizes.amin(1) < 2, around, apart).clamp_min(0.0)
    return score.masked_fill(valid.sum(1) < 2, torch.nan)


@needs_float64
def silhouette_score(embeddings: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    r"""How much better the images fit their own of two clusters than the other.

    .. math:: S = \frac{1}{n} \sum_i \frac{b_i - a_i}{\max(a_i, b_i)}

    with a_i the mean euclidean distance of unit embedding i to the others of its cluster and b_i
    to those of the other cluster; 0 for an image alone in its cluster (Rousseeuw 1987,
    "Silhouettes"). One feature scores above 0 too, as any cloud can be halved.

    Args:
        embeddings: float [U, N, D]; they are l2-normalised here.
        labels: int64 [U, N], 0 or 1, from :func:`two_means`; -1 where invalid.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U] in [-1, 1]; NaN for a neuron with fewer than three valid or with one cluster,
        as :func:`two_means` leaves it below four.

    Raises:
        InputError: A shape or type is wrong.
    """
    check_images(embeddings, valid)
    check_each(labels, valid, "labels")
    points = unit_points(embeddings, valid)
    # By products of the points, those of equal ones would be 1e-8 in place of 0.
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    labels = labels.masked_fill(~valid, -1)
    totals, sizes = cluster_sums(distance, labels, 2)  # [U, 2, N], [U, 2]
    own = labels.clamp_min(0)
    mates, others = sizes.gather(1, own), sizes.gather(1, 1 - own)
    near = totals.gather(1, own[:, None]).squeeze(1) / (mates - 1.0)
    far = totals.gather(1, 1 - own[:, None]).squeeze(1) / others
    fit = (far - near) / torch.maximum(near, far)
    # Alone, or all at the same place: no cluster is the better one.
    even = (mates < 2.0) | ((near == 0.0) & (far == 0.0)) | ~valid
    count = valid.sum(1)
    score = fit.masked_fill(even, 0.0).sum(1) / count
    return score.masked_fill((count < 3) | (sizes.amin(1) < 1), torch.nan)
