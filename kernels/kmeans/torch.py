"""K-means on Gram matrices in torch: all neurons and starts at once, in float64, on any device."""

from typing import NamedTuple

import torch
from torch import Tensor

from polylight.kernels.kmeans.reference import EXCHANGES, LEAST_GAIN
from polylight.kernels.kmeans.seeding import kmeans_plusplus


class _Means(NamedTuple):
    """Cluster means in terms of the points: all that distances to them need."""

    member: Tensor  # bool [U, K, R, N]
    sizes: Tensor  # float64 [U, K, R, 1]
    products: Tensor  # float64 [U, K, R, N], point times cluster sum
    squares: Tensor  # float64 [U, K, R, 1], squared norm of the cluster sum


def _means(gram: Tensor, labels: Tensor, k: int) -> _Means:
    clusters = torch.arange(k, dtype=labels.dtype, device=labels.device)
    member = labels[:, None] == clusters[:, None, None]
    one_hot = member.to(gram.dtype)
    products = torch.bmm(one_hot.flatten(1, 2), gram).view_as(one_hot)
    return _Means(
        member,
        one_hot.sum(-1, keepdim=True),
        products,
        one_hot.mul_(products).sum(-1, keepdim=True),
    )


def _lowest(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum over dim 1, the clusters, and the lowest cluster that has it (int8).

    Two reductions that vectorise: ``argmin`` over an inner axis is over ten times slower on a CPU.
    """
    k = cost.shape[1]
    rank = torch.arange(k, 0, -1, dtype=torch.int8, device=cost.device)
    rank = rank.view(-1, *[1] * (cost.dim() - 2))
    least = cost.amin(1, keepdim=True)
    highest = (cost == least).view(torch.int8).mul_(rank).amax(1)
    # NaN equals nothing; such a neuron keeps valid labels and a NaN inertia.
    return least.squeeze(1), (k - highest).clamp_max_(k - 1)


def inertia_of(gram: Tensor, labels: Tensor, k: int) -> Tensor:
    """Sum of squared distances to the cluster means: float64 [U, R] from labels int8 [U, R, N]."""
    means = _means(gram, labels, k)
    explained = (means.squares / means.sizes.clamp_min(1.0)).sum((1, 3))
    return (gram.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True) - explained).clamp_min(0.0)


def lloyd(gram: Tensor, labels: Tensor, k: int, iterations: int) -> Tensor:
    """See :func:`polylight.kernels.kmeans.reference.lloyd`.

    Args:
        gram: float64 [U, N, N].
        labels: int8 [U, R, N], the start; -1 for a point that is not valid.
        k: Number of clusters.
        iterations: The most iterations.

    Returns:
        int8 [U, R, N].
    """
    invalid = labels < 0
    for _ in range(iterations):
        means = _means(gram, labels, k)
        inverse = means.sizes.reciprocal()
        empty = means.sizes == 0
        # |mean|^2 - 2 x.mean; the point's own norm is the same for every cluster.
        square = (means.squares * inverse * inverse).masked_fill_(empty, torch.inf)
        slope = (-2.0 * inverse).masked_fill_(empty, 0.0)
        _, moved = _lowest(means.products.mul_(slope).add_(square))
        moved.masked_fill_(invalid, -1)
        # A settled problem stays as it is, so leaving early changes nothing; on a GPU the
        # question would cost a synchronisation.
        if labels.device.type == "cpu" and torch.equal(moved, labels):
            break
        labels = moved
    return labels


def exchange(gram: Tensor, labels: Tensor, k: int, steps: int) -> Tensor:
    """See :func:`polylight.kernels.kmeans.reference.exchange`.

    Args:
        gram: float64 [U, N, N].
        labels: int8 [U, R, N], the start; -1 for a point that is not valid.
        k: Number of clusters.
        steps: The most moves.

    Returns:
        int8 [U, R, N]; no cluster is empty where there are k points or more and steps >= k - 1.
    """
    num, restarts, _ = labels.shape
    means = _means(gram, labels, k)
    state = _Exchange(
        torch.arange(num * restarts, device=labels.device),
        labels.flatten(0, 1).long(),
        means.products.transpose(1, 2).flatten(0, 1),
        means.sizes.squeeze(-1).transpose(1, 2).flatten(0, 1),
        means.squares.squeeze(-1).transpose(1, 2).flatten(0, 1),
    )
    result = state.labels.clone()
    for _ in range(steps):
        moved = _move_one(gram, state, restarts)
        if labels.device.type == "cpu":
            # What has settled stays as it is, so dropping it changes nothing; on a GPU the
            # question would cost a synchronisation.
            going = int(moved.sum())
            if 2 * going < len(moved):
                result[state.problem] = state.labels
                state = _Exchange(*(part[moved] for part in state))
            if going == 0:
                break
    result[state.problem] = state.labels
    return result.view_as(labels).to(labels.dtype)


class _Exchange(NamedTuple):
    """Problems (neuron and restart) whose points are being moved; updated in place."""

    problem: Tensor  # int64 [P], neuron * restarts + restart
    labels: Tensor  # int64 [P, N]
    products: Tensor  # float64 [P, K, N], cluster sum times point
    sizes: Tensor  # float64 [P, K]
    squares: Tensor  # float64 [P, K], squared norm of the cluster sum


def _move_one(gram: Tensor, state: _Exchange, restarts: int) -> Tensor:
    """Make the best move of each problem in place; bool [P], whether there was one."""
    problem, labels, products, sizes, squares = state
    neuron = problem // restarts
    norms = gram.diagonal(dim1=1, dim2=2)
    total = norms.sum(-1)[neuron, None]  # [P, 1]
    norms = norms[neuron]  # [P, N]
    weight, inverse = sizes / (sizes + 1.0), sizes.clamp_min(1.0).reciprocal()
    # An empty cluster costs less than any other, so it is entered first.
    offset = squares * inverse * inverse * weight - (sizes == 0) * (2.0 * total + 1.0)
    enter = torch.addcmul(offset[..., None], products, (-2.0 * inverse * weight)[..., None])
    enter.addcmul_(norms[:, None], weight[..., None])  # [P, K, N]
    own = labels.clamp_min(0)
    mates = sizes.gather(1, own)  # [P, N]
    # The distance to the own mean without its weight m / (m + 1), times m / (m - 1).
    leave = enter.gather(1, own[:, None]).squeeze(1) * ((mates + 1.0) / (mates - 1.0))
    least, target = _lowest(enter.scatter_(1, own[:, None], torch.inf))
    gain = (leave - least).masked_fill_((labels < 0) | (mates < 2), -torch.inf)
    best, point = gain.max(-1)
    moved = best > LEAST_GAIN * total[:, 0]
    rows = torch.arange(len(problem), device=problem.device)
    source, sink = own[rows, point], target[rows, point].long()
    norm = norms[rows, point] * moved
    squares[rows, source] += norm - 2.0 * products[rows, source, point] * moved
    squares[rows, sink] += norm + 2.0 * products[rows, sink, point] * moved
    column = gram[neuron, point] * moved[:, None]
    products[rows, source] -= column
    products[rows, sink] += column
    sizes[rows, source] -= moved.to(sizes.dtype)
    sizes[rows, sink] += moved.to(sizes.dtype)
    labels[rows, point] = torch.where(moved, sink, labels[rows, point])
    return moved


def distances(gram: Tensor, counts: Tensor) -> Tensor:
    """Squared distances between the points: float64 [U, N, N], 0 to invalid ones."""
    norms = gram.diagonal(dim1=1, dim2=2)
    apart = (norms[:, :, None] + norms[:, None] - 2.0 * gram).clamp_min_(0.0)
    invalid = torch.arange(gram.shape[-1], device=gram.device) >= counts[:, None]
    return apart.masked_fill_(invalid[:, None], 0.0)


def choose_seeds(apart: Tensor, counts: Tensor, uniform: Tensor) -> Tensor:
    """Choose the starting points from the squared distances: int64 [U, R, k_max]."""
    return kmeans_plusplus(lambda index: _rows(apart, index), counts, uniform)


def _rows(apart: Tensor, index: Tensor) -> Tensor:
    """Distances of the points int64 [U, M] to all points: [U, M, N]."""
    return apart.gather(1, index[..., None].expand(-1, -1, apart.shape[-1]))


def gram_kmeans(
    gram: Tensor, counts: Tensor, limits: Tensor, uniform: Tensor, k_max: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """See :func:`polylight.kernels.gram_kmeans`."""
    restarts = uniform.shape[1]
    apart = distances(gram, counts)
    seeds = choose_seeds(apart, counts, uniform)
    nearest = _rows(apart, seeds[..., 0])  # [U, R, N]
    valid = torch.arange(gram.shape[-1], device=gram.device) < counts[:, None]
    start = torch.where(valid, 0, -1).to(torch.int8)[:, None].expand(-1, restarts, -1)
    labels, inertia = [start[:, 0]], [inertia_of(gram, start[:, :1], 1)[:, 0]]
    for k in range(2, k_max + 1):
        distance = _rows(apart, seeds[..., k - 1])
        start = torch.where(distance < nearest, k - 1, start)
        nearest = torch.minimum(nearest, distance)
        found = exchange(gram, lloyd(gram, start, k, iterations), k, max(EXCHANGES, k))
        best, within = best_start(gram, found, k)
        wanted = limits >= k
        labels.append(torch.where(wanted[:, None], best, labels[0]))
        inertia.append(torch.where(wanted, within, inertia[0]))
    return torch.stack(labels, 1), torch.stack(inertia, 1)


def best_start(gram: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the labels int8 [U, N] of the start with the least inertia, float64 [U]."""
    within = inertia_of(gram, labels, k)
    best = within.argmin(-1, keepdim=True)
    chosen = labels.take_along_dim(best[..., None], dim=1)[:, 0]
    return chosen, within.take_along_dim(best, dim=1)[:, 0]
