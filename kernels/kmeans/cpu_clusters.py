"""Clusters as the CPU kernels keep them, and what changes them.

The loops run over points, contiguous and without branches, so that they become vector
instructions.
"""

from typing import Any, NamedTuple

import numpy as np

from polylight.kernels.compiling import compiled
from polylight.kernels.kmeans.reference import TRIALS
from polylight.kernels.memory import Floats, Integers, aligned

# Rows of costs that are compared at a time.
GROUP = 4


class Clusters(NamedTuple):
    """Clusters in terms of the points, as in :mod:`polylight.kernels.kmeans.torch`."""

    products: Floats  # [K, P], cluster sum times point
    squares: Floats  # [K], squared norm of the cluster sum
    sizes: Floats  # [K]


class Workspace(NamedTuple):
    """What one thread works in; P points, of which the last fill up a vector."""

    start: Clusters  # as the seeds divide the points
    now: Clusters
    norms: Floats  # [P]
    nearest: Floats  # [P], squared distance to the nearest seed
    reach: Floats  # [TRIALS, P], the same with one seed more
    cumulative: Floats  # [P]
    least: Floats  # [P]
    enter: Floats  # [K up to a whole group, P], cost of joining a cluster, infinite for the own
    leave: Floats  # [P], what leaving the own saves
    start_labels: Integers  # [P]
    labels: Integers  # [P]
    closest: Integers  # [P]
    moving: Integers  # [P + 1]


def make_workspace(k_max: int, width: int) -> Workspace:
    """Memory for one thread; ``width`` points."""

    def clusters() -> Clusters:
        return Clusters(aligned(k_max, width), aligned(k_max), aligned(k_max))

    floats = ("norms", "nearest", "cumulative", "least", "leave")
    integers = ("start_labels", "labels", "closest")
    return Workspace(
        start=clusters(),
        now=clusters(),
        reach=aligned(TRIALS, width),
        enter=aligned(-(-k_max // GROUP) * GROUP, width),
        moving=aligned(width + 1, dtype=np.int64),
        **{name: aligned(width) for name in floats},
        **{name: aligned(width, dtype=np.int64) for name in integers},
    )


@compiled(inline=True)
def fill(row: Any, value: float) -> None:
    """Set all numbers to one."""
    for i in range(len(row)):
        row[i] = value


@compiled(inline=True)
def copy(source: Any, target: Any) -> None:
    """Copy as many numbers as the target has."""
    for i in range(len(target)):
        target[i] = source[i]


@compiled(inline=True)
def clear(clusters: Clusters, c: int) -> None:
    """Empty a cluster."""
    fill(clusters.products[c], 0.0)
    clusters.squares[c] = clusters.sizes[c] = 0.0


@compiled(inline=True)
def add(row: Floats, point: int, c: int, clusters: Clusters) -> None:
    """Add a point, of which ``row`` is the Gram matrix's, to a cluster."""
    into = clusters.products[c]
    clusters.squares[c] += row[point] + 2.0 * into[point]
    clusters.sizes[c] += 1.0
    for i in range(len(row)):
        into[i] += row[i]


@compiled(inline=True)
def move_point(row: Floats, point: int, source: int, target: int, clusters: Clusters) -> None:
    """Move a point, of which ``row`` is the Gram matrix's, from one cluster to another."""
    out, into, norm = clusters.products[source], clusters.products[target], row[point]
    clusters.squares[source] += norm - 2.0 * out[point]
    clusters.squares[target] += norm + 2.0 * into[point]
    clusters.sizes[source] -= 1.0
    clusters.sizes[target] += 1.0
    for i in range(len(row)):
        number = row[i]
        less, more = out[i] - number, into[i] + number
        out[i] = less
        into[i] = more


@compiled(inline=True)
def inertia_of(total: float, k: int, clusters: Clusters) -> float:
    """Sum of squared distances to the means, of which ``total`` is that to 0."""
    explained = 0.0
    for c in range(k):
        explained += clusters.squares[c] / max(clusters.sizes[c], 1.0)
    return max(total - explained, 0.0)


@compiled()
def gather(gram: Floats, count: int, k: int, space: Workspace) -> None:
    """Build up the clusters from the labels."""
    for c in range(k):
        clear(space.now, c)
    for point in range(count):
        add(gram[point], point, space.labels[point], space.now)


@compiled(inline=True)
def total_of(values: Floats) -> float:
    """Sum, by four that do not wait for one another."""
    a = b = c = d = 0.0
    for i in range(0, len(values), 4):
        a, b = a + values[i], b + values[i + 1]
        c, d = c + values[i + 2], d + values[i + 3]
    return (a + b) + (c + d)
