"""The compiled loops of :mod:`polylight.kernels.gram_kmeans_numba`.

They run over points, contiguous and without branches, so that they become vector instructions.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polylight.kernels.compiling import Floats, Integers, compiled

# Rows of costs that are compared at a time.
GROUP = 4


class Clusters(NamedTuple):
    """Clusters in terms of the points, as in the twin."""

    products: Floats  # [K, P], cluster sum times point
    squares: Floats  # [K], squared norm of the cluster sum
    sizes: Floats  # [K]


class Space(NamedTuple):
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


@compiled(inline=True)
def _fill(row: Any, value: float) -> None:
    for i in range(len(row)):
        row[i] = value


@compiled(inline=True)
def _copy(source: Any, target: Any) -> None:
    for i in range(len(target)):
        target[i] = source[i]


@compiled(inline=True)
def _clear(clusters: Clusters, c: int) -> None:
    _fill(clusters.products[c], 0.0)
    clusters.squares[c] = clusters.sizes[c] = 0.0


@compiled(inline=True)
def _add(row: Floats, point: int, c: int, clusters: Clusters) -> None:
    """Add a point, of which ``row`` is the Gram matrix's, to a cluster."""
    into = clusters.products[c]
    clusters.squares[c] += row[point] + 2.0 * into[point]
    clusters.sizes[c] += 1.0
    for i in range(len(row)):
        into[i] += row[i]


@compiled(inline=True)
def _move(row: Floats, point: int, source: int, target: int, clusters: Clusters) -> None:
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
def _inertia(total: float, k: int, clusters: Clusters) -> float:
    explained = 0.0
    for c in range(k):
        explained += clusters.squares[c] / max(clusters.sizes[c], 1.0)
    return max(total - explained, 0.0)


@compiled()
def _gather(gram: Floats, count: int, k: int, space: Space) -> None:
    """Build up the clusters from the labels."""
    for c in range(k):
        _clear(space.now, c)
    for point in range(count):
        _add(gram[point], point, space.labels[point], space.now)


@compiled(inline=True)
def _approach(
    products: Floats, square: float, slope: float, c: int, least: Floats, closest: Integers
) -> None:
    """Note the points that are nearer to the mean of cluster c than to those before."""
    for i in range(len(products)):
        cost = square + slope * products[i]
        before, other = least[i], closest[i]
        nearer = cost < before
        least[i] = cost if nearer else before
        closest[i] = c if nearer else other


@compiled(inline=True)
def _lloyd(gram: Floats, count: int, k: int, iterations: int, space: Space) -> None:
    """Assign each point to its nearest mean until nothing changes."""
    now, labels, closest, moving = space.now, space.labels, space.closest, space.moving
    for _ in range(iterations):
        _fill(space.least, np.inf)
        _fill(closest, 0)
        for c in range(k):
            if now.sizes[c] > 0.0:
                inverse = 1.0 / now.sizes[c]
                # |mean|^2 - 2 x.mean; the point's own norm is the same for every cluster.
                square = now.squares[c] * inverse * inverse
                _approach(now.products[c], square, -2.0 * inverse, c, space.least, closest)
        moves = 0
        for i in range(count):
            # Without a branch, which would be guessed wrongly for most that move.
            moving[moves] = i
            moves += closest[i] != labels[i]
        if moves == 0:
            break
        for move in range(moves):
            point = moving[move]
            _move(gram[point], point, labels[point], closest[point], now)
            labels[point] = closest[point]
        for c in range(k):
            # Rounding may have left something of a cluster that is now empty.
            if now.sizes[c] == 0.0:
                _clear(now, c)


@compiled(inline=True)
def _price(
    products: Floats, norms: Floats, labels: Integers, c: int, offset: float, slope: float,
    weight: float, ratio: float, bias: float, enter: Floats, leave: Floats,
) -> None:  # fmt: skip
    for i in range(len(products)):
        cost = offset + slope * products[i] + weight * norms[i]
        before = leave[i]
        own = labels[i] == c
        enter[i] = np.inf if own else cost
        leave[i] = cost * ratio + bias if own else before


@compiled(inline=True)
def _reprice(c: int, total: float, space: Space) -> None:
    """Work out what entering cluster c costs each point, and what leaving it saves its own."""
    now, size = space.now, space.now.sizes[c]
    # An empty cluster costs less than any other, so it is entered first.
    offset, slope, weight = -(2.0 * total + 1.0), 0.0, 0.0
    # The last point of a cluster stays.
    ratio, bias = 0.0, -np.inf
    if size > 0.0:
        weight = size / (size + 1.0)
        offset = now.squares[c] / (size * size) * weight
        slope = -2.0 * weight / size
    if size > 1.0:
        # The distance to the own mean without its weight m / (m + 1), times m / (m - 1).
        ratio, bias = (size + 1.0) / (size - 1.0), 0.0
    _price(
        now.products[c], space.norms, space.labels, c, offset, slope, weight, ratio, bias,
        space.enter[c], space.leave,
    )  # fmt: skip


@compiled(inline=True)
def _cheapest(a: Floats, b: Floats, c: Floats, d: Floats, least: Floats) -> None:
    for i in range(len(least)):
        x = a[i] if a[i] < b[i] else b[i]
        y = c[i] if c[i] < d[i] else d[i]
        lower = x if x < y else y
        before = least[i]
        least[i] = lower if lower < before else before


@compiled(inline=True)
def _largest(values: Floats) -> float:
    """Maximum, by four that do not wait for one another."""
    a = b = c = d = -np.inf
    for i in range(0, len(values), 4):
        # The built-in maximum asks for NaN too, of which there is none.
        p, q, r, s = values[i], values[i + 1], values[i + 2], values[i + 3]
        a = p if p > a else a
        b = q if q > b else b
        c = r if r > c else c
        d = s if s > d else d
    return max(max(a, b), max(c, d))


@compiled(inline=True)
def _first(values: Floats, wanted: float) -> int:
    """Index of the first that equals; without a branch, which would be guessed wrongly."""
    found = len(values)
    for i in range(len(values)):
        here = i if values[i] == wanted else len(values)
        found = here if here < found else found
    return found


@compiled(inline=True)
def _sum(values: Floats) -> float:
    """Sum, by four that do not wait for one another."""
    a = b = c = d = 0.0
    for i in range(0, len(values), 4):
        a, b = a + values[i], b + values[i + 1]
        c, d = c + values[i + 2], d + values[i + 3]
    return (a + b) + (c + d)


@compiled(inline=True)
def _exchange(
    gram: Floats, k: int, steps: int, total: float, least_gain: float, space: Space
) -> None:
    """Make the best move of a single point until none lowers the inertia."""
    enter, leave, gain = space.enter, space.leave, space.least
    _fill(leave, -np.inf)
    for c in range(k, len(enter)):
        _fill(enter[c], np.inf)
    source = target = 0
    for step in range(steps):
        # At first all clusters, later those that have changed.
        for turn in range(2 if step else k):
            c = (target if turn else source) if step else turn
            _reprice(c, total, space)
        _fill(gain, np.inf)
        for c in range(0, k, GROUP):
            _cheapest(enter[c], enter[c + 1], enter[c + 2], enter[c + 3], gain)
        for i in range(len(gain)):
            gain[i] = leave[i] - gain[i]
        best = _largest(gain)
        # Rounding must not be taken for a gain, or points would move for ever.
        if not best > least_gain * total:
            break
        point = _first(gain, best)
        source, target, lowest = space.labels[point], 0, np.inf
        for c in range(k):
            cost = enter[c, point]
            target = c if cost < lowest else target
            lowest = cost if cost < lowest else lowest
        _move(gram[point], point, source, target, space.now)
        space.labels[point] = target


@compiled(inline=True)
def _shorten(row: Floats, norms: Floats, norm: float, nearest: Floats, reach: Floats) -> None:
    """Squared distances to the nearest seed, if the point of this row became one."""
    for i in range(len(row)):
        # As the twin rounds it.
        distance = norm + norms[i] - 2.0 * row[i]
        before = nearest[i]
        positive = distance if distance > 0.0 else 0.0
        reach[i] = positive if positive < before else before


@compiled(inline=True)
def _choose(
    gram: Floats, count: int, draws: NDArray[np.float32], equal: float, space: Space
) -> int:
    """Choose the next seed by greedy k-means++; say which row of ``reach`` belongs to it."""
    nearest, cumulative, norms = space.nearest, space.cumulative, space.norms
    total = 0.0
    for i in range(count):
        total += nearest[i]
        cumulative[i] = total
    best, chosen = np.inf, 0
    for trial in range(len(draws)):
        level, below = np.float64(draws[trial]) * total, 0
        for i in range(len(cumulative)):
            below += 1 if cumulative[i] < level else 0
        point = min(below, count - 1)
        _shorten(gram[point], norms, norms[point], nearest, space.reach[trial])
        left = _sum(space.reach[trial])
        # The first of those that differ by rounding alone.
        if left < best - equal * total:
            best, chosen = left, trial
    return chosen


@compiled(inline=True)
def _divide(gram: Floats, count: int, new: int, chosen: Floats, space: Space) -> None:
    """Give the points that are nearest to a new seed to its cluster."""
    start, labels, moving = space.start, space.start_labels, space.moving
    _clear(start, new)
    moves = 0
    for i in range(count):
        moving[moves] = i
        moves += chosen[i] < space.nearest[i]
    for move in range(moves):
        point = moving[move]
        _move(gram[point], point, labels[point], new, start)
        labels[point] = new
    _copy(chosen, space.nearest)


@compiled()
def _begin(gram: Floats, count: int, space: Space) -> None:
    """Put all points of a new neuron into one cluster."""
    _fill(space.norms, 0.0)
    _fill(space.cumulative, np.inf)
    for i in range(len(space.labels)):
        space.labels[i] = 0 if i < count else -1
    for i in range(count):
        space.norms[i] = gram[i, i]
    _gather(gram, count, 1, space)


@compiled()
def solve_all(
    space: Space, iterations: int, exchanges: int, least_gain: float, equal: float, trials: int,
    grams: Floats, counts: Integers, limits: Integers, uniform: NDArray[np.float32],
    all_labels: NDArray[np.int8], all_inertia: Floats,
) -> None:  # fmt: skip
    """Solve some neurons, one after the other, into ``all_labels`` and ``all_inertia``.

    The arguments are those of :func:`polylight.kernels.gram_kmeans.solve`, rows of the Gram
    matrices filled up to whole vectors with zeros; its constants; and a place to work in.
    """
    now, start, labels = space.now, space.start, space.labels
    whole = np.empty_like(space.norms)
    for neuron in range(len(grams)):
        gram, count, limit = grams[neuron], counts[neuron], limits[neuron]
        found, inertia = all_labels[neuron], all_inertia[neuron]
        _begin(gram, count, space)
        total = _sum(space.norms)
        whole_square = now.squares[0]
        _copy(now.products[0], whole)
        _fill(inertia, _inertia(total, 1, now))
        for k in range(len(inertia)):
            _copy(labels, found[k])
        if not np.isfinite(total):
            _fill(inertia, np.nan)
            continue
        _fill(inertia[1:limit], np.inf)
        for restart in range(len(uniform[neuron]) if limit > 1 else 0):
            draws = uniform[neuron, restart]
            _fill(space.start_labels, 0)
            _copy(whole, start.products[0])
            start.squares[0], start.sizes[0] = whole_square, count
            first = int(np.float64(draws[0]) * count)
            for i in range(len(space.nearest)):
                space.nearest[i] = np.inf if i < count else 0.0
            _shorten(gram[first], space.norms, space.norms[first], space.nearest, space.nearest)
            for k in range(2, limit + 1):
                drawn = 1 + (k - 2) * trials
                chosen = _choose(gram, count, draws[drawn : drawn + trials], equal, space)
                _divide(gram, count, k - 1, space.reach[chosen], space)
                _copy(space.start_labels[:count], labels[:count])
                for c in range(k):
                    _copy(start.products[c], now.products[c])
                    now.squares[c], now.sizes[c] = start.squares[c], start.sizes[c]
                _lloyd(gram, count, k, iterations, space)
                _exchange(gram, k, max(exchanges, k), total, least_gain, space)
                within = _inertia(total, k, now)
                if within < inertia[k - 1]:
                    inertia[k - 1] = within
                    _copy(labels, found[k - 1])
        for k in range(2, limit + 1):
            # Anew, so that rounding has not piled up.
            _copy(found[k - 1], labels[:count])
            _gather(gram, count, k, space)
            inertia[k - 1] = _inertia(total, k, now)
