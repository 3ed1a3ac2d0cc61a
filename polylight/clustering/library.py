"""What the library back ends share: the seeds, the choice of the best start, the inertia."""

from collections.abc import Callable

import torch
from torch import Tensor

from polylight.clustering.bic import reachable
from polylight.kernels import kmeans_draws, kmeans_plusplus


def solve_each(
    points: Tensor,
    valid: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
    run: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Run a library's k-means on each neuron, K and start in turn.

    Args:
        points: float64 [U, N, D], centred, valid points first, the others 0.
        valid: bool [U, N].
        keys: int64 [U], random stream of each neuron.
        k_max: Largest number of clusters.
        restarts: Starts for each K.
        run: Maps points float64 [n, D] and first centroids float64 [K, D] to labels int64 [n].

    Returns:
        int64 [U, k_max, N], labels for K = 1..k_max, -1 where invalid; float64
        [U, k_max], inertia. A K out of reach is left as if it were one cluster.
    """
    norms = points.square().sum(-1)

    def distance_to(index: Tensor) -> Tensor:
        chosen = points.take_along_dim(index[..., None], 1)
        distance = norms[:, None] - 2.0 * torch.bmm(chosen, points.mT)
        distance += norms.gather(1, index)[..., None]
        return distance.clamp_min_(0.0).masked_fill_(~valid[:, None], 0.0)

    counts = valid.sum(-1)
    seeds = kmeans_plusplus(distance_to, counts, kmeans_draws(keys, k_max, restarts))
    labels = torch.where(valid, 0, -1)[:, None].repeat(1, k_max, 1)
    inertia = norms.sum(-1, keepdim=True).repeat(1, k_max)
    reach = reachable(counts, k_max).sum(-1)
    for neuron, (count, largest) in enumerate(zip(counts.tolist(), reach.tolist(), strict=True)):
        rows = points[neuron, :count]
        for k in range(2, largest + 1):
            starts = (rows[start] for start in seeds[neuron, :, :k])
            found = [_fill_empty(rows, run(rows, start), k) for start in starts]
            within = torch.stack([_distances(rows, label, k).sum() for label in found])
            best = int(within.argmin())
            labels[neuron, k - 1, :count] = found[best]
            inertia[neuron, k - 1] = within[best]
    return labels, inertia


def _distances(points: Tensor, labels: Tensor, k: int) -> Tensor:
    """Squared distance of each point to the mean of its cluster: float64 [n]."""
    one_hot = torch.nn.functional.one_hot(labels, k).to(points.dtype)
    means = one_hot.mT @ points / one_hot.sum(0).clamp_min(1.0)[:, None]
    return (points - means[labels]).square().sum(-1)


def _fill_empty(points: Tensor, labels: Tensor, k: int) -> Tensor:
    """Move the point that is farthest from its mean to each empty cluster in turn."""
    sizes = labels.bincount(minlength=k)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        far = _distances(points, labels, k).masked_fill(sizes[labels] < 2, -1.0).argmax()
        labels = labels.clone()
        labels[far] = empty
        sizes = labels.bincount(minlength=k)
    return labels
