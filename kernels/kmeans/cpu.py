"""K-means on Gram matrices for CPUs: one neuron after the other, in vectors of points.

What the torch backend computes by products with the memberships is kept up to date here: a point
that moves adds its row of the Gram matrix to one cluster and takes it from another, so what has
settled costs nothing.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polylight.kernels.compiling import compiled
from polylight.kernels.kmeans.cpu_clusters import (
    Workspace,
    clear,
    copy,
    fill,
    gather,
    inertia_of,
    make_workspace,
    move_point,
    total_of,
)
from polylight.kernels.kmeans.cpu_moves import exchange, lloyd
from polylight.kernels.kmeans.reference import EQUAL, EXCHANGES, TRIALS
from polylight.kernels.memory import LANES, Floats, Integers
from polylight.kernels.openmp import parallel_for


def gram_kmeans(
    gram: Tensor, counts: Tensor, limits: Tensor, uniform: Tensor, k_max: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """See :func:`polylight.kernels.gram_kmeans`; the tensors are on a CPU.

    Of starts that end equally well up to rounding another may be kept than in torch.
    """
    num, images, _ = gram.shape
    gram = torch.nn.functional.pad(gram, (0, -images % LANES))
    labels = torch.empty(num, k_max, images, dtype=torch.int8)
    inertia = torch.empty(num, k_max, dtype=torch.float64)
    batch = [t.contiguous().numpy() for t in (gram, counts, limits, uniform, labels, inertia)]

    def run(start: int, stop: int) -> None:
        rows = (part[start:stop] for part in batch)
        _solve_all(make_workspace(k_max, gram.shape[-1]), iterations, *rows)

    parallel_for(num, run)
    return labels, inertia


@compiled(inline=True)
def _shorten(row: Floats, norms: Floats, norm: float, nearest: Floats, reach: Floats) -> None:
    """Squared distances to the nearest seed, if the point of this row became one."""
    for i in range(len(row)):
        # Rounded as in torch.
        distance = norm + norms[i] - 2.0 * row[i]
        before = nearest[i]
        positive = distance if distance > 0.0 else 0.0
        reach[i] = positive if positive < before else before


@compiled(inline=True)
def _choose(gram: Floats, count: int, draws: NDArray[np.float32], space: Workspace) -> int:
    """Choose the next seed by greedy k-means++; say which row of ``reach`` belongs to it."""
    nearest, cumulative, norms = space.nearest, space.cumulative, space.norms
    total = 0.0
    for i in range(count):
        total += nearest[i]
        cumulative[i] = total
    best, chosen = np.inf, 0
    for trial in range(len(draws)):
        level, rank = np.float64(draws[trial]) * total, 0
        for i in range(len(cumulative)):
            rank += 1 if cumulative[i] < level else 0
        point = min(rank, count - 1)
        _shorten(gram[point], norms, norms[point], nearest, space.reach[trial])
        left = total_of(space.reach[trial])
        # The first of those that differ by rounding alone.
        if left < best - EQUAL * total:
            best, chosen = left, trial
    return chosen


@compiled(inline=True)
def _divide(gram: Floats, count: int, new: int, chosen: Floats, space: Workspace) -> None:
    """Give the points that are nearest to a new seed to its cluster."""
    start, labels, moving = space.start, space.start_labels, space.moving
    clear(start, new)
    moves = 0
    for i in range(count):
        moving[moves] = i
        moves += chosen[i] < space.nearest[i]
    for move in range(moves):
        point = moving[move]
        move_point(gram[point], point, labels[point], new, start)
        labels[point] = new
    copy(chosen, space.nearest)


@compiled()
def _begin(gram: Floats, count: int, space: Workspace) -> None:
    """Put all points of a new neuron into one cluster."""
    fill(space.norms, 0.0)
    fill(space.cumulative, np.inf)
    for i in range(len(space.labels)):
        space.labels[i] = 0 if i < count else -1
    for i in range(count):
        space.norms[i] = gram[i, i]
    gather(gram, count, 1, space)


@compiled()
def _solve_all(
    space: Workspace, iterations: int,
    grams: Floats, counts: Integers, limits: Integers, uniform: NDArray[np.float32],
    all_labels: NDArray[np.int8], all_inertia: Floats,
) -> None:  # fmt: skip
    """Solve some neurons, one after the other, into ``all_labels`` and ``all_inertia``.

    The arguments are those of :func:`gram_kmeans`, rows of the Gram matrices filled up to whole
    vectors with zeros.
    """
    now, start, labels = space.now, space.start, space.labels
    whole = np.empty_like(space.norms)
    for neuron in range(len(grams)):
        gram, count, limit = grams[neuron], counts[neuron], limits[neuron]
        found, inertia = all_labels[neuron], all_inertia[neuron]
        _begin(gram, count, space)
        total = total_of(space.norms)
        whole_square = now.squares[0]
        copy(now.products[0], whole)
        fill(inertia, inertia_of(total, 1, now))
        for k in range(len(inertia)):
            copy(labels, found[k])
        if not np.isfinite(total):
            fill(inertia, np.nan)
            continue
        fill(inertia[1:limit], np.inf)
        for restart in range(len(uniform[neuron]) if limit > 1 else 0):
            draws = uniform[neuron, restart]
            fill(space.start_labels, 0)
            copy(whole, start.products[0])
            start.squares[0], start.sizes[0] = whole_square, count
            first = int(np.float64(draws[0]) * count)
            for i in range(len(space.nearest)):
                space.nearest[i] = np.inf if i < count else 0.0
            _shorten(gram[first], space.norms, space.norms[first], space.nearest, space.nearest)
            for k in range(2, limit + 1):
                drawn = 1 + (k - 2) * TRIALS
                chosen = _choose(gram, count, draws[drawn : drawn + TRIALS], space)
                _divide(gram, count, k - 1, space.reach[chosen], space)
                copy(space.start_labels[:count], labels[:count])
                for c in range(k):
                    copy(start.products[c], now.products[c])
                    now.squares[c], now.sizes[c] = start.squares[c], start.sizes[c]
                lloyd(gram, count, k, iterations, space)
                exchange(gram, k, max(EXCHANGES, k), total, space)
                within = inertia_of(total, k, now)
                if within < inertia[k - 1]:
                    inertia[k - 1] = within
                    copy(labels, found[k - 1])
        for k in range(2, limit + 1):
            # Anew, so that rounding has not piled up.
            copy(found[k - 1], labels[:count])
            gather(gram, count, k, space)
            inertia[k - 1] = inertia_of(total, k, now)
