"""A number with its interval and what it rests on, or the reason why there is none."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polylight.planted.statistics import (
    Array,
    auroc,
    bootstrap_interval,
    highest_spearman,
    spearman,
    wilson_interval,
)

# The same for every statistic: those of the same neurons are then drawn alike.
_SEED = 0

Strata = Mapping[tuple[str, int], Sequence[float]]
"""Scores by what they may be compared within (a layer of a subject) and by m."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Number of neurons (or pairs of neurons, where it says so) that it rests on."""
    reason: str | None
    """Why there is no value; None where there is one."""


def absent(reason: str, n: int = 0) -> Estimate:
    """An estimate that cannot be made.

    Args:
        reason: Why.
        n: How many observations there were.

    Returns:
        An estimate without a value.
    """
    return Estimate(value=None, low=None, high=None, n=n, reason=reason)


def estimate(
    statistic: Callable[..., npt.ArrayLike],
    samples: Sequence[npt.ArrayLike],
    *,
    draws: int,
    reason: str,
) -> Estimate:
    """Compute a statistic and its bootstrap interval, within strata.

    Args:
        statistic: Of arrays [..., n_i], one a sample, reducing the last axis.
        samples: Observations [n_i] of each stratum.
        draws: Draws of the bootstrap, > 0.
        reason: What to say where it is not defined, or a sample is empty.

    Returns:
        The estimate; without an interval where no sample has two observations to draw from.
    """
    arrays = [np.asarray(s, np.float64) for s in samples]
    sizes = [len(a) for a in arrays]
    if not sizes or not all(sizes):
        return absent(reason, sum(sizes))
    value = float(statistic(*arrays))  # type: ignore[arg-type]
    if not math.isfinite(value):
        return absent(reason, sum(sizes))
    low, high = None, None
    if max(sizes) > 1:
        low, high = bootstrap_interval(statistic, *arrays, seed=_SEED, draws=draws)
    return Estimate(value=value, low=low, high=high, n=sum(sizes), reason=None)


def mean_of(values: Sequence[float], *, draws: int, reason: str) -> Estimate:
    """Average, with its bootstrap interval.

    Args:
        values: Finite numbers [n].
        draws: Draws of the bootstrap, > 0.
        reason: What to say where there are none.

    Returns:
        The estimate.
    """
    return estimate(lambda x: x.mean(-1), [values], draws=draws, reason=reason)


def share_of(yes: Sequence[bool], *, reason: str) -> Estimate:
    """Share of those for which something holds, with Wilson's interval.

    Args:
        yes: Whether it holds [n].
        reason: What to say where there are none.

    Returns:
        The estimate, in [0, 1].
    """
    if not yes:
        return absent(reason)
    low, high = wilson_interval(sum(yes), len(yes))
    return Estimate(value=sum(yes) / len(yes), low=low, high=high, n=len(yes), reason=None)


def estimate_auroc(strata: Strata, *, within: bool, draws: int) -> Estimate:
    """AUROC of neurons of one feature against those of more.

    Args:
        strata: Scores by group and m.
        within: Whether only neurons of the same group are compared: the mean of the groups'
            AUROCs by number of pairs. Otherwise all are pooled.
        draws: Draws of the bootstrap, each of which keeps the size of all strata.

    Returns:
        The estimate.
    """
    keys, samples = list(strata), list(strata.values())
    parted = [[k for k in keys if k[0] == g] for g in dict.fromkeys(g for g, _ in keys)]
    groups = [g for g in (parted if within else [keys]) if len({m == 1 for _, m in g}) == 2]
    if not groups:
        return absent(_lack(strata, within), sum(map(len, samples)))
    kept = [k for group in groups for k in group]

    def statistic(*arrays: Array) -> Array:
        of = dict(zip(kept, arrays, strict=True))
        won = pairs = np.float64(0.0)
        for group in groups:
            one = np.concatenate([of[k] for k in group if k[1] == 1], -1)
            more = np.concatenate([of[k] for k in group if k[1] > 1], -1)
            count = one.shape[-1] * more.shape[-1]
            won, pairs = won + count * auroc(one, more), pairs + count
        return np.asarray(won / pairs)

    return estimate(statistic, [strata[k] for k in kept], draws=draws, reason=_EQUAL)


def estimate_spearman(strata: Strata, *, within: bool, draws: int) -> Estimate:
    """Rank correlation of scores with the number of features.

    Args:
        strata: Scores by group and m.
        within: Whether only neurons of the same group are compared: the mean of the groups'
            correlations by number of neurons. Otherwise all are pooled.
        draws: Draws of the bootstrap, each of which keeps the size of all strata.

    Returns:
        The estimate.
    """
    keys, samples = list(strata), list(strata.values())
    parted = [[k for k in keys if k[0] == g] for g in dict.fromkeys(g for g, _ in keys)]
    groups = [g for g in (parted if within else [keys]) if len({m for _, m in g}) > 1]
    if not groups:
        return absent(_lack(strata, within), sum(map(len, samples)))
    kept = [k for group in groups for k in group]

    def statistic(*arrays: Array) -> Array:
        of = dict(zip(kept, arrays, strict=True))
        total = count = np.float64(0.0)
        for group in groups:
            scores = np.concatenate([of[k] for k in group], -1)
            known = np.concatenate([np.full(of[k].shape[-1], k[1]) for k in group])
            total = total + scores.shape[-1] * spearman(scores, known)
            count = count + scores.shape[-1]
        return np.asarray(total / count)

    return estimate(statistic, [strata[k] for k in kept], draws=draws, reason=_EQUAL)


def estimate_highest_spearman(strata: Strata) -> Estimate:
    """What a score would reach that orders neurons rightly by their number of features.

    Neurons with the same number are tied, and a score tells them apart nonetheless.

    Args:
        strata: Scores by group and m.

    Returns:
        The value, all groups pooled; it has no interval.
    """
    known = [m for (_, m), scores in strata.items() for _ in scores]
    if len(set(known)) < 2:
        return absent(_lack(strata, within=False), len(known))
    most = highest_spearman(known)
    return Estimate(value=most, low=None, high=None, n=len(known), reason=None)


_EQUAL = "all scores are equal"


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
