"""How many clusters: by splitting them in two for as long as a criterion accepts."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from polylight.clustering.bic import bic, choose_k
from polylight.clustering.gap import gap_statistic
from polylight.kernels import Kernels, centre, philox_uniform

Selection = Literal["bic", "xmeans", "gmeans", "sigclust"]
# Labels int64 [P, N] and inertia float64 [P, 2] of points, valid and keys.
TwoMeans = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

LEAST_SIZE = 2
# Of the corrected statistic at 1e-4, from Hamerly & Elkan; measured, normal numbers are above it
# twice in 10,000 times, and less often where they are ten or fewer.
CRITICAL = 1.8692
ALPHA = 0.05
# Above the counters from which the starts of k-means are drawn.
_HALVES = 1 << 31


def split(
    points: Tensor,
    valid: Tensor,
    keys: Tensor,
    *,
    k_max: int,
    selection: Selection,
    dims: int,
    two_means: TwoMeans,
    kernels: Kernels,
) -> tuple[Tensor, Tensor]:
    """Split the clusters of every neuron by 2-means for as long as a criterion accepts.

    All clusters of all neurons are tried at once, level by level, each once. Where more splits are
    accepted than k_max allows, those that lower the inertia most are made. A split that leaves a
    single point is not made.

    ``xmeans``
        The Bayesian information criterion of the cluster's own points is larger for two clusters
        than for one (:func:`polylight.clustering.bic.bic`; Pelleg & Moore 2000).
    ``gmeans``
        The points along the line between the two means are not normal (:func:`is_not_normal`;
        Hamerly & Elkan 2003).
    ``sigclust``
        Clusters explain more than they would of one Gaussian
        (:func:`polylight.clustering.gap_statistic`), at the level
        :math:`0.05 n_c / n` for n_c of the neuron's n points: at most 5 % of the neurons have a
        Gaussian cluster that is split (Meinshausen 2008; Kimes et al. 2017).

    Args:
        points: float [U, N, D]; invalid ones are ignored.
        valid: bool [U, N].
        keys: int64 [U], random stream of each neuron; its clusters share it, so that nothing
            depends on their order.
        k_max: Largest number of clusters.
        selection: The criterion; not ``bic``, which does not split.
        dims: Dimension that the criterion of ``xmeans`` counts with.
        two_means: Finds two clusters.
        kernels: Which implementation of 2-means the null of ``sigclust`` runs.

    Returns:
        int64 [U, N], labels 0..k - 1 in no order of meaning, -1 where invalid; int64 [U], k.
    """
    labels = torch.where(valid, 0, -1)
    k = torch.ones_like(keys)
    counts = valid.sum(-1)
    clusters = torch.arange(k_max, device=labels.device)
    is_open = (clusters == 0) & (counts >= 2 * LEAST_SIZE)[:, None]  # [U, k_max]
    for _ in range(k_max - 1):
        neuron, cluster = is_open.nonzero(as_tuple=True)
        if len(neuron) == 0:
            break
        part = points[neuron], labels[neuron] == cluster[:, None], keys[neuron]
        halves, inertia = two_means(*part)  # [P, N], [P, 2]
        sizes = torch.stack([(halves == 0).sum(-1), (halves == 1).sum(-1)], -1)
        wanted = sizes.amin(-1) >= LEAST_SIZE
        if selection == "xmeans":
            wanted &= is_likelier(inertia, sizes, dims)
        elif selection == "gmeans":
            wanted &= is_not_normal(*part, two_means)
        else:
            level = ALPHA * sizes.sum(-1) / counts[neuron]
            wanted &= gap_statistic(*part, kernels=kernels).p_value <= level
        gain = torch.full(is_open.shape, -torch.inf, dtype=inertia.dtype, device=labels.device)
        gain[neuron, cluster] = (inertia[:, 0] - inertia[:, 1]).masked_fill(~wanted, -torch.inf)
        rank = gain.argsort(descending=True, stable=True).argsort()
        made = (gain > -torch.inf) & (rank < (k_max - k)[:, None])
        new = k[:, None] + rank
        pair, image = ((halves == 1) & made[neuron, cluster, None]).nonzero(as_tuple=True)
        labels[neuron[pair], image] = new[neuron[pair], cluster[pair]]
        before, k = k, k + made.sum(-1)
        is_open = made | ((clusters >= before[:, None]) & (clusters < k[:, None]))
    return labels, k


def is_likelier(inertia: Tensor, sizes: Tensor, dims: int) -> Tensor:
    """Whether two clusters have a larger Bayesian information criterion than one.

    Args:
        inertia: float64 [P, 2], sum of squared distances to one and to two means.
        sizes: int64 [P, 2], points of the two clusters.
        dims: Dimension of the points, > 0.

    Returns:
        bool [P]; False for fewer than four points.
    """
    counts = sizes.sum(-1)
    whole = torch.stack([counts, torch.zeros_like(counts)], -1)
    return choose_k(bic(inertia, torch.stack([whole, sizes], 1), counts, dims)) == 2


def is_not_normal(points: Tensor, valid: Tensor, keys: Tensor, two_means: TwoMeans) -> Tensor:
    """Whether the points along the line between two means are not normal.

    The means that a line is drawn through lie apart along it, even those of a single Gaussian,
    and the more so the more dimensions there are beside the points. So the points are halved at
    random, each half is projected on the line between the two means of the other, and what both
    give, each standardised, is tested together (:func:`anderson_darling`) at 1e-4. With few points
    that level is out of reach: fewer than twelve are never split, and of fewer than about forty
    only modes of like size that lie far apart.

    Args:
        points: float [P, N, D]; invalid ones are ignored.
        valid: bool [P, N].
        keys: int64 [P], random streams, from which the halves are drawn.
        two_means: Finds two clusters.

    Returns:
        bool [P]; False for fewer than eight points, of which a half has no two clusters.
    """
    centred, _ = centre(points, valid)
    images = valid.shape[1]
    counts = valid.sum(-1, keepdim=True)
    present = torch.arange(images, device=valid.device) < counts
    uniform = philox_uniform(keys, torch.full_like(keys, _HALVES), images)
    shuffled = uniform.masked_fill(~present, torch.inf).argsort(stable=True).argsort()
    first = shuffled < counts // 2
    half = torch.stack([first, present & ~first], 1)  # [P, 2, N]
    labels, _ = two_means(
        centred.repeat_interleave(2, 0), half.flatten(0, 1), keys.repeat_interleave(2)
    )
    member = (labels[:, None] == torch.arange(2, device=labels.device)[:, None]).double()
    sizes = member.sum(-1)
    means = (member @ centred.repeat_interleave(2, 0)) / sizes[..., None]  # [2 P, 2, D]
    # Towards the smaller cluster on both lines, or one half would mirror the other.
    way = torch.where(sizes[:, 0] < sizes[:, 1], -1.0, 1.0)[:, None]
    line = (way * (means[:, 1] - means[:, 0])).view(len(keys), 2, -1)
    along = (line.flip(1) @ centred.mT).masked_fill(~half, 0.0)
    size = half.sum(-1, keepdim=True)
    along = (along - along.sum(-1, keepdim=True) / size).masked_fill(~half, 0.0)
    along /= (along.square().sum(-1, keepdim=True) / (size - 1)).sqrt()
    return anderson_darling(along.sum(1), present) > CRITICAL


def anderson_darling(values: Tensor, valid: Tensor) -> Tensor:
    r"""Distance of standardised numbers from the normal distribution.

    .. math::
        A^2 = -n - \frac1n \sum_i (2i - 1)
              \bigl(\ln \Phi(z_i) + \ln \Phi(-z_{n + 1 - i})\bigr), \qquad
        A^{2*} = A^2 \Bigl(1 + \frac4n - \frac{25}{n^2}\Bigr)

    for n sorted numbers z (Anderson & Darling 1952), with the correction for a mean and a
    variance that come from the numbers (Stephens 1974).

    Args:
        values: float64 [P, N], of mean 0 and variance 1; invalid ones are ignored.
        valid: bool [P, N].

    Returns:
        float64 [P]; NaN without valid and where a value is NaN.
    """
    counts = valid.sum(-1, keepdim=True)
    position = torch.arange(valid.shape[1], device=valid.device)
    present = position < counts
    # NaN is sorted last.
    ascending = values.masked_fill(~valid, torch.nan).sort(-1).values
    descending = ascending.gather(1, (counts - 1 - position).clamp_min(0))
    logs = torch.special.log_ndtr(ascending) + torch.special.log_ndtr(-descending)
    weighted = ((2 * position + 1) * logs).masked_fill(~present, 0.0).sum(-1)
    n = counts.squeeze(-1).to(values.dtype)
    statistic: Tensor = (-n - weighted / n) * (1.0 + 4.0 / n - 25.0 / n.square())
    return statistic
