"""Statistics of scores against what is known: plain numpy in float64, batched where it pays.

A statistic reduces the last axis of its arguments; axes before it are a batch, such as the draws
of a bootstrap. Where it is undefined it is NaN.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from polylight.errors import InputError

Array = npt.NDArray[np.float64]

# The 97.5th percentile of the standard normal distribution: intervals hold 95 %.
_Z = 1.959963984540054


def auroc(negatives: npt.ArrayLike, positives: npt.ArrayLike) -> Array:
    r"""Probability that a positive scores above a negative.

    .. math:: P(s^+ > s^-) + P(s^+ = s^-) / 2 = \frac{R^+ - n^+ (n^+ + 1) / 2}{n^+ n^-}

    with R+ the sum of the positives' ranks among all: the area under the ROC curve (Mann & Whitney
    1947, Hanley & McNeil 1982).

    Args:
        negatives: Finite scores [..., n-].
        positives: Finite scores [..., n+], of the same batch shape.

    Returns:
        float64 [...] in [0, 1]; NaN if either has no scores.
    """
    below, above = np.asarray(negatives, np.float64), np.asarray(positives, np.float64)
    num_below, num_above = below.shape[-1], above.shape[-1]
    ranks = midranks(np.concatenate([below, above], axis=-1))
    won = ranks[..., num_below:].sum(-1) - num_above * (num_above + 1) / 2
    pairs = num_below * num_above
    return np.asarray(won / pairs if pairs else np.full_like(won, np.nan))


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Rank correlation: Pearson's correlation of midranks (Spearman 1904).

    Args:
        x: Finite values [..., n].
        y: Finite values [..., n], of the same batch shape or one that broadcasts.

    Returns:
        float64 [...] in [-1, 1]; NaN where either is constant or there are fewer than 2 values.
    """
    a, b = (midranks(np.asarray(values, np.float64)) for values in (x, y))
    # Midranks average (n + 1) / 2, exactly so: sums of halves carry no rounding error.
    a, b = a - (a.shape[-1] + 1) / 2, b - (b.shape[-1] + 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def highest_spearman(known: npt.ArrayLike) -> float:
    r"""Largest rank correlation that values without ties can have with tied ones.

    .. math:: \sqrt{1 - \sum_g (t_g^3 - t_g) / (n^3 - n)}

    with t the sizes of the groups of ties: what a score reaches that orders all groups rightly
    (Kendall 1945, "The treatment of ties in ranking problems").

    Args:
        known: Values [n].

    Returns:
        In [0, 1]; NaN for fewer than 2 values.
    """
    _, sizes = np.unique(np.asarray(known), return_counts=True)
    n = float(sizes.sum())
    t = sizes.astype(np.float64)
    return math.sqrt(1.0 - float((t**3 - t).sum()) / (n**3 - n)) if n > 1 else math.nan


def midranks(values: Array) -> Array:
    """Rank values from 1 to n; equal values share the mean of their ranks.

    Args:
        values: float64 [..., n], without NaN.

    Returns:
        float64 [..., n].
    """
    if not values.shape[-1]:
        return values.copy()
    order = values.argsort(-1, kind="stable")
    ordered = np.take_along_axis(values, order, -1)
    place = np.arange(values.shape[-1])
    edge = np.ones((*values.shape[:-1], 1), dtype=bool)
    rises = ordered[..., 1:] != ordered[..., :-1]
    starts, ends = np.concatenate([edge, rises], -1), np.concatenate([rises, edge], -1)
    first = np.maximum.accumulate(np.where(starts, place, 0), -1)
    after = np.where(ends, place, values.shape[-1])[..., ::-1]
    last = np.minimum.accumulate(after, -1)[..., ::-1]
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, -1)
    return ranks


def facet_recall(winner: npt.ArrayLike, valid: npt.ArrayLike, m: int) -> Array:
    """Share of a composite's components that win at least one image that counts.

    Args:
        winner: int [..., N], the component in 0..m-1 that each image drives most; any other number
            is none of them.
        valid: bool [..., N], which images count.
        m: Number of components, > 0.

    Returns:
        float64 [...] in [0, 1].
    """
    won = np.asarray(winner)[..., None, :] == np.arange(m)[:, None]  # [..., m, N]
    return np.asarray((won & np.asarray(valid, bool)[..., None, :]).any(-1).mean(-1))


def adjusted_rand(labels: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    r"""Agreement of two partitions, 0 for chance.

    .. math:: \frac{\sum_{ij} \binom{n_{ij}}{2} - E}{(A + B) / 2 - E},
              \qquad E = \frac{A B}{\binom{n}{2}}

    with A and B the number of pairs that either partition keeps together (Hubert & Arabie 1985).

    Args:
        labels: int [N], one partition.
        truth: int [N], the other.

    Returns:
        At most 1, which two equal partitions have, also trivial ones; NaN without any elements.
    """
    a, b = np.asarray(labels), np.asarray(truth)
    if not a.size:
        return math.nan
    _, rows = np.unique(a, return_inverse=True)
    _, columns = np.unique(b, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1.0)
    both, ours, theirs = (_pairs(t) for t in (table, table.sum(1), table.sum(0)))
    most = (ours + theirs) / 2
    everything = a.size * (a.size - 1) / 2
    chance = ours * theirs / everything if everything else 0.0
    # Both keep all together or all apart: nothing is left to chance, and they are equal.
    return 1.0 if most == chance else float((both - chance) / (most - chance))


def _pairs(sizes: Array) -> float:
    """Count the pairs within groups of these sizes."""
    return float((sizes * (sizes - 1) / 2).sum())


def icc(*raters: npt.ArrayLike) -> Array:
    r"""Intraclass correlation ICC(2,1): how far one rater's values are the subjects' own.

    .. math:: \frac{MS_R - MS_E}{MS_R + (k - 1) MS_E + k (MS_C - MS_E) / n}

    from the two-way analysis of variance of n subjects (R) by k raters (C): random effects,
    absolute agreement, single rater (Shrout & Fleiss 1979).

    Args:
        raters: k >= 2 arrays [..., n], each of the same n >= 2 subjects in the same order.

    Returns:
        float64 [...], at most 1; NaN where nothing varies, or with fewer raters or subjects.
    """
    ratings = np.stack([np.asarray(r, np.float64) for r in raters], -1)  # [..., n, k]
    n, k = ratings.shape[-2:]
    if n < 2 or k < 2:
        return np.full(ratings.shape[:-2], np.nan)
    mean = ratings.mean((-2, -1), keepdims=True)
    rows = ratings.mean(-1, keepdims=True) - mean
    columns = ratings.mean(-2, keepdims=True) - mean
    between = k * (rows**2).sum((-2, -1)) / (n - 1)
    raters_apart = n * (columns**2).sum((-2, -1)) / (k - 1)
    error = ((ratings - mean - rows - columns) ** 2).sum((-2, -1)) / ((n - 1) * (k - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            (between - error) / (between + (k - 1) * error + k * (raters_apart - error) / n)
        )


def k_error(k: npt.ArrayLike, m: npt.ArrayLike) -> tuple[Array, Array]:
    """How far the number of clusters is from the number of features.

    Args:
        k: int [..., n], clusters found.
        m: int [..., n], features known.

    Returns:
        float64 [...] each: the mean of k - m, and the share in [0, 1] with k = m. NaN for n = 0.
    """
    apart = np.asarray(k, np.float64) - np.asarray(m, np.float64)
    if not apart.shape[-1]:
        nothing = np.full(apart.shape[:-1], np.nan)
        return nothing, nothing
    return np.asarray(apart.mean(-1)), np.asarray((apart == 0).mean(-1))


def bootstrap_interval(
    statistic: Callable[..., npt.ArrayLike],
    *samples: npt.ArrayLike,
    seed: int,
    draws: int = 2000,
) -> tuple[float, float]:
    """95 % interval by the percentile bootstrap, every sample drawn anew by itself.

    Samples are strata: each keeps its size in all draws (Efron & Tibshirani 1993, ch. 8 and 13).

    Args:
        statistic: Takes as many arrays as there are samples, [draws, n_i, ...], and gives a value
            for each draw [draws].
        samples: Arrays [n_i, ...] with n_i > 0; the first axis is drawn from.
        seed: Of the draws, >= 0.
        draws: How many, > 0.

    Returns:
        The 2.5th and 97.5th percentile of the statistic, over the draws in which it is defined;
        NaN if it is in none.

    Raises:
        InputError: If a sample is empty.
    """
    arrays = [np.asarray(sample) for sample in samples]
    if not arrays or not all(len(a) for a in arrays):
        raise InputError(
            "a bootstrap needs samples of at least one observation each, but got sizes "
            f"{[len(a) for a in arrays]}; leave empty ones out."
        )
    generator = np.random.default_rng(seed)
    drawn = [a[generator.integers(0, len(a), (draws, len(a)))] for a in arrays]
    values = np.asarray(statistic(*drawn), np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def wilson_interval(yes: int, n: int) -> tuple[float, float]:
    r"""95 % interval of a share, not of zero width at 0 or 1 (Wilson 1927).

    .. math:: \frac{p + z^2 / 2n \pm z \sqrt{p (1 - p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    Args:
        yes: How many did, 0..n.
        n: Of how many, > 0.

    Returns:
        Its ends in [0, 1].
    """
    p, z2 = yes / n, _Z * _Z
    middle, half = p + z2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Nobody or everybody: the end is exact, whatever the rounding.
    low = (middle - half) / (1 + z2 / n) if yes else 0.0
    high = (middle + half) / (1 + z2 / n) if yes < n else 1.0
    return low, high
