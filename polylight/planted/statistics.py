"""Statistics of scores against what is known, each with its 95 % interval.

A statistic reduces the last axis of its arguments; axes before it are a batch, the resamples of a
bootstrap. Where it is undefined it is NaN.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]

# The same for every statistic: the same neurons are then resampled in the same way.
_SEED = 0


def auroc(negatives: npt.ArrayLike, positives: npt.ArrayLike) -> Array:
    """Probability that a positive scores above a negative: the area under the ROC curve.

    Mann and Whitney's U over the number of pairs (Hanley & McNeil 1982), which scipy takes a batch
    of; scikit-learn's takes one at a time.

    Args:
        negatives: Finite scores [..., n-], n- > 0.
        positives: Finite scores [..., n+], n+ > 0, of the same batch shape.

    Returns:
        float64 [...] in [0, 1].
    """
    x, y = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    u = stats.mannwhitneyu(x, y, axis=-1, method="asymptotic").statistic
    return np.asarray(u / (x.shape[-1] * y.shape[-1]))


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """Rank correlation: Pearson's correlation of midranks (Spearman 1904).

    Args:
        x: Finite values [..., n].
        y: Finite values [..., n], of the same batch shape or one that broadcasts.

    Returns:
        float64 [...] in [-1, 1]; NaN where either is constant or there are fewer than 2 values.
    """
    a, b = (stats.rankdata(np.asarray(values, np.float64), axis=-1) for values in (x, y))
    if a.shape[-1] < 2:
        return np.full(np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return np.asarray(stats.pearsonr(a, b, axis=-1).statistic)


def spearman_bound(known: npt.ArrayLike) -> float:
    """Largest rank correlation that a score can have with tied values: that of the right order.

    Args:
        known: Values [n].

    Returns:
        In [0, 1]; NaN where all values are equal.
    """
    ordered = np.sort(np.asarray(known, np.float64))
    return float(spearman(ordered, np.arange(len(ordered))))


def feature_recall(component: npt.ArrayLike, valid: npt.ArrayLike, m: int) -> Array:
    """Share of a composite's components that are driven most by at least one valid image.

    Args:
        component: int [..., N], the component in 0..m-1 that each image drives most; any other
            number is none of them.
        valid: bool [..., N], which images count.
        m: Number of components, > 0.

    Returns:
        float64 [...] in [0, 1].
    """
    won = np.asarray(component)[..., None, :] == np.arange(m)[:, None]  # [..., m, N]
    return np.asarray((won & np.asarray(valid, bool)[..., None, :]).any(-1).mean(-1))


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
    ms_rows = k * (rows**2).sum((-2, -1)) / (n - 1)
    ms_columns = n * (columns**2).sum((-2, -1)) / (k - 1)
    ms_error = ((ratings - mean - rows - columns) ** 2).sum((-2, -1)) / ((n - 1) * (k - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            (ms_rows - ms_error) / (ms_rows + (k - 1) * ms_error + k * (ms_columns - ms_error) / n)
        )


def bootstrap_interval(
    statistic: Callable[..., npt.ArrayLike], *samples: npt.ArrayLike, resamples: int
) -> tuple[float, float]:
    """95 % interval by the percentile bootstrap, every sample resampled by itself.

    Samples are strata: each keeps its size in all resamples (Efron & Tibshirani 1993, ch. 8 and
    13). ``scipy.stats.bootstrap`` does the same, but refuses a stratum of one observation and gives
    no interval where the statistic is undefined for a single resample; both are common here.

    Args:
        statistic: Takes as many arrays as there are samples, [resamples, n_i, ...], and gives a
            value for each resample [resamples].
        samples: Arrays [n_i, ...] with n_i > 0; the first axis is resampled.
        resamples: How many, > 0.

    Returns:
        The 2.5th and 97.5th percentile over the resamples in which the statistic is defined; NaN
        if it is in none.
    """
    generator, arrays = np.random.default_rng(_SEED), [np.asarray(s) for s in samples]
    drawn = [a[generator.integers(0, len(a), (resamples, len(a)))] for a in arrays]
    values = np.asarray(statistic(*drawn), np.float64)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if values.size else (math.nan, math.nan)
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval, or the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    """Number of neurons (or pairs of neurons, where it says so) that it rests on."""
    reason: str | None = None
    """Why there is no value; None where there is one."""


def estimate(
    statistic: Callable[..., npt.ArrayLike],
    samples: Sequence[npt.ArrayLike],
    *,
    resamples: int,
    reason: str,
) -> Estimate:
    """Compute a statistic and its bootstrap interval, within strata.

    Args:
        statistic: Of arrays [..., n_i], one a sample, reducing the last axis (or the last but
            one, where a sample has several values a neuron).
        samples: Observations [n_i, ...] of each stratum.
        resamples: Of the bootstrap, > 0.
        reason: What to say where it is not defined, or a sample is empty.

    Returns:
        The estimate; without an interval where no sample has two observations.
    """
    arrays = [np.asarray(s, np.float64) for s in samples]
    sizes = [len(a) for a in arrays]
    value = float(statistic(*arrays)) if sizes and all(sizes) else math.nan  # type: ignore[arg-type]
    if not math.isfinite(value):
        return Estimate(value=None, n=sum(sizes), reason=reason)
    if max(sizes) == 1:
        return Estimate(value=value, n=sum(sizes))
    low, high = bootstrap_interval(statistic, *arrays, resamples=resamples)
    return Estimate(value=value, low=low, high=high, n=sum(sizes))


def mean_of(values: Sequence[float], *, resamples: int, reason: str) -> Estimate:
    """Average finite numbers [n], with its bootstrap interval.

    Args:
        values: The numbers.
        resamples: Of the bootstrap, > 0.
        reason: What to say where there are none.

    Returns:
        The estimate.
    """
    return estimate(lambda x: x.mean(-1), [values], resamples=resamples, reason=reason)


def share_of(yes: Sequence[bool], *, reason: str) -> Estimate:
    """Share of those for which something holds, with Wilson's interval (Wilson 1927).

    Args:
        yes: Whether it holds [n].
        reason: What to say where there are none.

    Returns:
        The estimate, in [0, 1].
    """
    if not yes:
        return Estimate(value=None, n=0, reason=reason)
    test = stats.binomtest(int(sum(yes)), len(yes))
    low, high = map(float, test.proportion_ci(method="wilson"))
    return Estimate(value=float(test.statistic), low=low, high=high, n=len(yes))


Strata = Mapping[tuple[str, int], Sequence[float]]
"""Scores by what they may be compared within (a layer of a subject) and by m."""


def separation(strata: Strata, *, within: bool, resamples: int) -> tuple[Estimate, Estimate]:
    """How a score tells one feature from more, and how it ranks numbers of features.

    Args:
        strata: Scores by group and m.
        within: Whether only neurons of the same group are compared: the mean of the groups'
            AUROCs by number of pairs, and of their correlations by number of neurons. Otherwise
            all are pooled.
        resamples: Of the bootstrap, each of which keeps the size of all strata.

    Returns:
        AUROC of neurons of one feature against those of more; Spearman's correlation of scores
        with the number of features.
    """

    def grouped(
        statistic: Callable[[dict[int, Array]], tuple[Array, int]],
        defined: Callable[[set[int]], bool],
    ) -> Estimate:
        groups: dict[Any, list[tuple[str, int]]] = {}
        for key in strata:
            groups.setdefault(key[0] if within else None, []).append(key)
        used = [keys for keys in groups.values() if defined({m for _, m in keys})]
        kept = [key for keys in used for key in keys]

        def mean_of_groups(*arrays: Array) -> Array:
            scores = dict(zip(kept, arrays, strict=True))
            found = [statistic(_by_m(keys, scores)) for keys in used]
            return np.average(
                [value for value, _ in found], axis=0, weights=[weight for _, weight in found]
            )

        if not used:
            return Estimate(
                value=None, n=sum(map(len, strata.values())), reason=_lack(strata, within)
            )
        return estimate(
            mean_of_groups,
            [strata[key] for key in kept],
            resamples=resamples,
            reason="all scores are equal",
        )

    return (
        grouped(_one_against_more, lambda known: 1 in known and len(known) > 1),
        grouped(_rank_correlation, lambda known: len(known) > 1),
    )


def _by_m(
    keys: Iterable[tuple[str, int]], scores: Mapping[tuple[str, int], Array]
) -> dict[int, Array]:
    """Put the scores of some strata together by number of features."""
    by_m: dict[int, list[Array]] = {}
    for key in keys:
        by_m.setdefault(key[1], []).append(scores[key])
    return {m: np.concatenate(arrays, -1) for m, arrays in by_m.items()}


def _one_against_more(by_m: dict[int, Array]) -> tuple[Array, int]:
    """AUROC [...], and the number of pairs that it is of."""
    more = np.concatenate([scores for m, scores in by_m.items() if m > 1], -1)
    return auroc(by_m[1], more), by_m[1].shape[-1] * more.shape[-1]


def _rank_correlation(by_m: dict[int, Array]) -> tuple[Array, int]:
    """Spearman's correlation with m [...], and the number of neurons that it is of."""
    known = np.repeat(list(by_m), [scores.shape[-1] for scores in by_m.values()])
    return spearman(np.concatenate(list(by_m.values()), -1), known), len(known)


def _lack(strata: Strata, within: bool) -> str:
    """Say what is missing for a comparison of one feature with more."""
    features = {m for _, m in strata}
    if not features:
        return "no neuron has a score"
    if 1 not in features:
        return "no neuron of one feature has a score"
    if features == {1}:
        return "no composite has a score"
    return "no layer has scores of both" if within else "all have the same number of features"
