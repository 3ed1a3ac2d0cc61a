"""Lloyd's iteration and the moves of single points, compiled for CPUs."""

import numpy as np

from polylight.kernels.compiling import compiled
from polylight.kernels.kmeans.cpu_clusters import GROUP, Workspace, clear, fill, move_point
from polylight.kernels.kmeans.reference import LEAST_GAIN
from polylight.kernels.memory import Floats, Integers


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
def lloyd(gram: Floats, count: int, k: int, iterations: int, space: Workspace) -> None:
    """Assign each point to its nearest mean until nothing changes."""
    now, labels, closest, moving = space.now, space.labels, space.closest, space.moving
    for _ in range(iterations):
        fill(space.least, np.inf)
        fill(closest, 0)
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
            move_point(gram[point], point, labels[point], closest[point], now)
            labels[point] = closest[point]
        for c in range(k):
            # Rounding may have left something of a cluster that is now empty.
            if now.sizes[c] == 0.0:
                clear(now, c)


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
def _reprice(c: int, total: float, space: Workspace) -> None:
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
def exchange(gram: Floats, k: int, steps: int, total: float, space: Workspace) -> None:
    """Make the best move of a single point until none lowers the inertia."""
    enter, leave, gain = space.enter, space.leave, space.least
    fill(leave, -np.inf)
    for c in range(k, len(enter)):
        fill(enter[c], np.inf)
    source = target = 0
    for step in range(steps):
        # At first all clusters, later those that have changed.
        for turn in range(2 if step else k):
            c = (target if turn else source) if step else turn
            _reprice(c, total, space)
        fill(gain, np.inf)
        for c in range(0, k, GROUP):
            _cheapest(enter[c], enter[c + 1], enter[c + 2], enter[c + 3], gain)
        for i in range(len(gain)):
            gain[i] = leave[i] - gain[i]
        best = _largest(gain)
        # Rounding must not be taken for a gain, or points would move for ever.
        if not best > LEAST_GAIN * total:
            break
        point = _first(gain, best)
        source, target, lowest = space.labels[point], 0, np.inf
        for c in range(k):
            cost = enter[c, point]
            target = c if cost < lowest else target
            lowest = cost if cost < lowest else lowest
        move_point(gram[point], point, source, target, space.now)
        space.labels[point] = target
