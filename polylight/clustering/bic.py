"""How many clusters: the Bayesian information criterion."""

import math

import torch
from torch import Tensor

FLOOR = 1e-8


def bic(inertia: Tensor, sizes: Tensor, counts: Tensor, dims: int) -> Tensor:
    r"""Bayesian information criterion of k-means clusterings; the largest is the best.

    Hard-assigned spherical Gaussians with one shared variance (Pelleg & Moore 2000, "X-means"),
    with the dimension in the variance and in every term where the printed formula lacks it, and
    the penalty counted once:

    .. math::
        BIC = \sum_j R_j \log\frac{R_j}{R} - \frac{RM}{2}\log(2\pi s^2) - \frac{W}{2 s^2}
              - \frac{(K-1) + MK + 1}{2}\log R, \qquad s^2 = \frac{W}{M(R-K)}

    for R points in M dimensions and K clusters of R_j points with inertia W. The variance has a
    floor of 1e-8 times the total variance (inertia at K = 1 over R M): where the clusters are
    exact duplicates a further cluster then gains nothing and costs its penalty.

    Args:
        inertia: float64 [U, k_max], sum of squared distances to the cluster means for
            K = 1..k_max.
        sizes: int64 [U, k_max, k_max], points of each cluster for each K, 0 beyond the K-th.
        counts: int64 [U], number of points.
        dims: Dimension of the points, > 0.

    Returns:
        float64 [U, k_max], in nats; NaN where K is out of reach (:func:`reachable`).
    """
    k_max = inertia.shape[1]
    k = torch.arange(1, k_max + 1, device=inertia.device, dtype=inertia.dtype)
    points = counts[:, None].to(inertia.dtype)
    degrees = dims * (points - k).clamp_min(1.0)
    total = inertia[:, :1] / (dims * points)
    tiny = torch.finfo(inertia.dtype).tiny
    variance = torch.maximum(inertia / degrees, FLOOR * total).clamp_min(tiny)
    parts = sizes.to(inertia.dtype)
    mixture = torch.xlogy(parts, parts / points[..., None]).sum(-1)
    likelihood = -0.5 * (points * dims * torch.log(2.0 * math.pi * variance) + inertia / variance)
    penalty = 0.5 * (k * (dims + 1)) * torch.log(points)
    result = mixture + likelihood - penalty
    return result.masked_fill(~reachable(counts, k_max), torch.nan)


def reachable(counts: Tensor, k_max: int) -> Tensor:
    """Say which K may be chosen: K = 1, and K of which clusters can average two points.

    The variance is estimated from R - K degrees of freedom: with more clusters than half the
    points it rests on fewer points than there are means, falls to 0, and the criterion grows
    without bound.

    Args:
        counts: int64 [U], number of points.
        k_max: Largest K.

    Returns:
        bool [U, k_max]; nothing is reachable without points.
    """
    k = torch.arange(1, k_max + 1, device=counts.device)
    limit = torch.maximum(counts // 2, counts.clamp_max(1))
    return k <= limit[:, None]


def choose_k(criterion: Tensor, k_min: int = 1) -> Tensor:
    """Take the K of the largest criterion, the smallest K among equals.

    Args:
        criterion: float64 [U, k_max], NaN where K is out of reach.
        k_min: Smallest K, in 1..k_max.

    Returns:
        int64 [U], in k_min..k_max; 1 where nothing from k_min on is reachable.
    """
    wanted = criterion[:, k_min - 1 :].nan_to_num(nan=-torch.inf)
    return torch.where(wanted.amax(1) > -torch.inf, wanted.argmax(1) + k_min, 1)
