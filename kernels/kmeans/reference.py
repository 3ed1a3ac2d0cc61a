"""K-means one neuron, one K, one start and one point at a time, in Python's float64."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from math import dist, inf
from statistics import fmean

import torch
from torch import Tensor

Points = Sequence[Sequence[float]]

TRIALS = 4
"""Candidates of each seed."""
EQUAL = 1e-12
"""Candidates whose inertias differ by less than this part of the inertia are as good as each other:
either of two points with no other near them lowers it equally, but for rounding."""
EXCHANGES = 64
"""The most moves of single points. Up to 64 images no start needs more; with 300 the inertia stops
.07 % above its end."""
LEAST_GAIN = 1e-12
"""A move has to lower the inertia by this part of the total; less may be rounding, and points would
move for ever."""


def kmeans(
    points: Tensor, counts: Tensor, limits: Tensor, uniform: Tensor, k_max: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Find the clusters of every neuron for every K.

    Each start chooses seeds (:func:`choose_seeds`), gives every point to its nearest seed, and is
    improved by :func:`lloyd`, then by :func:`exchange`. The start of least inertia is kept, the
    first of equals.

    Args:
        points: float64 [U, N, D], finite, the valid ones first.
        counts: int64 [U], number of valid points, 0..N.
        limits: int64 [U], the largest K that is wanted of each neuron, at most its count.
        uniform: float32 [U, R, 1 + (k_max - 1) TRIALS] in (0, 1): R starts for each K
            (:func:`polylight.kernels.kmeans.seeding.kmeans_draws`).
        k_max: Largest number of clusters, 1..127.
        iterations: The most Lloyd iterations, > 0.

    Returns:
        int8 [U, k_max, N], labels for K = 1..k_max, -1 for points that are not valid; float64
        [U, k_max], inertia. Above its limit a neuron is left as if it were one cluster.
    """
    num, images, _ = points.shape
    labels = torch.full((num, k_max, images), -1, dtype=torch.int8)
    inertias = torch.zeros(num, k_max, dtype=torch.float64)
    for neuron, count in enumerate(counts.tolist()):
        rows = points[neuron, :count].tolist()
        for k in range(1, k_max + 1) if rows else ():
            wanted = k if k <= limits[neuron] else 1
            starts = [
                one_start(rows, draws, wanted, iterations) for draws in uniform[neuron].tolist()
            ]
            best = min(starts, key=lambda start: inertia(rows, start, wanted))
            labels[neuron, k - 1, :count] = torch.tensor(best)
            inertias[neuron, k - 1] = inertia(rows, best, wanted)
    return labels, inertias


def one_start(points: Points, draws: Sequence[float], k: int, iterations: int) -> list[int]:
    """Find k clusters; a label for each point."""
    seeds = [points[seed] for seed in choose_seeds(points, draws, k)]
    labels = [nearest(point, seeds) for point in points]
    return exchange(points, lloyd(points, labels, k, iterations), k, max(EXCHANGES, k))


def choose_seeds(points: Points, draws: Sequence[float], k: int) -> list[int]:
    """Choose k points by greedy k-means++.

    A point is drawn with probability proportional to its squared distance from the nearest point
    chosen so far (Arthur & Vassilvitskii 2007); of four such draws the one that lowers the inertia
    most is kept, the first of equals. The first K choices are a start for K clusters.
    """
    seeds = [int(draws[0] * len(points))]
    reach = [squared(point, points[seeds[0]]) for point in points]
    for first in range(1, 1 + (k - 1) * TRIALS, TRIALS):
        cumulative = list(accumulate(reach))
        total = cumulative[-1]
        candidates = [bisect_left(cumulative, d * total) for d in draws[first : first + TRIALS]]
        reaches = [
            [
                min(near, squared(point, points[c]))
                for point, near in zip(points, reach, strict=True)
            ]
            for c in candidates
        ]
        least = min(map(sum, reaches))
        best = next(t for t in range(TRIALS) if sum(reaches[t]) <= least + EQUAL * total)
        seeds.append(candidates[best])
        reach = reaches[best]
    return seeds


def lloyd(points: Points, labels: Sequence[int], k: int, iterations: int) -> list[int]:
    """Give each point to its nearest cluster mean until nothing changes (Lloyd 1957).

    Ties go to the lowest cluster; a cluster may become empty, and stays so.
    """
    labels = list(labels)
    for _ in range(iterations):
        means = cluster_means(points, labels, k)
        moved = [nearest(point, means) for point in points]
        if moved == labels:
            break
        labels = moved
    return labels


def exchange(points: Points, labels: Sequence[int], k: int, steps: int) -> list[int]:
    """Move single points between clusters while that lowers the inertia.

    One point a step, the best (Hartigan 1975, ch. 4): moving x from cluster a of m_a points to b
    changes the inertia by ``m_b / (m_b + 1) d(x, b) - m_a / (m_a - 1) d(x, a)``, d being the
    squared distance to the mean. This leaves many of the local minima where Lloyd's iteration is
    stuck. An empty cluster is filled before anything else, by the point whose leaving lowers the
    inertia most; the last point of a cluster stays.
    """
    labels = list(labels)
    total = inertia(points, [0] * len(points), 1)
    # To enter an empty cluster costs less than to enter any other can.
    free = -(2.0 * total + 1.0)
    for _ in range(steps):
        means = cluster_means(points, labels, k)
        sizes = [labels.count(c) for c in range(k)]
        best, move = LEAST_GAIN * total, None
        for i, point in enumerate(points):
            size = sizes[labels[i]]
            if size == 1:
                continue
            leave = size / (size - 1) * squared(point, means[labels[i]])
            for c in range(k):
                if c == labels[i]:
                    continue
                enter = sizes[c] / (sizes[c] + 1) * squared(point, means[c]) if sizes[c] else free
                if leave - enter > best:
                    best, move = leave - enter, (i, c)
        if move is None:
            break
        labels[move[0]] = move[1]
    return labels


def inertia(points: Points, labels: Sequence[int], k: int) -> float:
    """Sum of the squared distances to the cluster means."""
    means = cluster_means(points, labels, k)
    return sum(squared(point, means[c]) for point, c in zip(points, labels, strict=True))


def cluster_means(points: Points, labels: Sequence[int], k: int) -> list[list[float]]:
    """Mean of each cluster; of an empty one a point that is nearest to nothing."""
    means = []
    for c in range(k):
        members = [point for point, label in zip(points, labels, strict=True) if label == c]
        columns = zip(*members, strict=True) if members else ((inf,) for _ in points[0])
        means.append([fmean(column) for column in columns])
    return means


def nearest(point: Sequence[float], centres: Points) -> int:
    """Index of the nearest centre, the lowest of equals."""
    return min(range(len(centres)), key=lambda c: squared(point, centres[c]))


def squared(a: Sequence[float], b: Sequence[float]) -> float:
    """Squared distance."""
    return dist(a, b) ** 2
