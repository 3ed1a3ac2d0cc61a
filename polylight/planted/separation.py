"""How a score tells planted neurons apart: one feature from more, and controls from neither."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from polylight.planted.estimate import (
    Estimate,
    absent,
    estimate,
    estimate_auroc,
    estimate_highest_spearman,
    estimate_spearman,
    mean_of,
    share_of,
)
from polylight.planted.outcome import COMPOSITES, CONTROLS, PRIMARY, Outcome
from polylight.planted.statistics import Array, auroc, icc, spearman


@dataclass(frozen=True, kw_only=True)
class Separation:
    """One feature against more."""

    auroc: Estimate
    """One against more, all pooled."""
    auroc_within: Estimate
    """The same among neurons of one layer only."""
    spearman: Estimate
    """Score with number of features, all pooled."""
    spearman_within: Estimate
    """The same among neurons of one layer only."""
    spearman_most: Estimate
    """What a score that orders all of them rightly would have, pooled: many are tied."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """Neurons that have no more features than a single channel."""

    mean: Estimate
    difference: Estimate
    """Their mean score less that of the singles."""
    above_components: Estimate
    """Mean of their score less the mean of their own components'."""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """All kinds of them."""

    min: Control
    copies: Control
    twins: Control


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Agreement of the scores of the same single channels between seeds."""

    icc: Estimate
    spearman: Estimate
    """Mean over the pairs of seeds."""


@dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """What one score makes of the neurons."""

    every: Separation
    """Singles and controls against composites."""
    singles: Separation
    """Singles alone against composites."""
    screened: Separation
    """The same of those whose components an independent measure found to have one feature."""
    above_mean: Estimate
    """Share of composites that score above the mean of their own components."""
    above_highest: Estimate
    """Share of composites that score above the highest of their own components."""
    mean_by_m: dict[int, Estimate]
    """Mean score of singles (1) and of composites."""
    controls: Controls
    ordering: Estimate
    """Probability that a composite of two components scores above one of two near-duplicates."""
    ordering_spearman: Estimate
    """Score with unlikeness of the components (correlation, negated), over the chosen pairs."""
    interval_width: Estimate
    """Mean width of the neurons' own intervals; of the primary score."""
    seeds: Seeds


def scores_of(
    outcomes: Sequence[Outcome], once: Sequence[Outcome], name: str, draws: int
) -> ScoreSummary:
    """Sum one score up.

    Args:
        outcomes: All of them, of one recipe.
        once: Each neuron once.
        name: Which score.
        draws: Draws of each bootstrap, > 0.

    Returns:
        The summary.
    """
    scored = [(o, s) for o in once if (s := o.score(name)) is not None]
    plain = [(o, s) for o, s in scored if o.kind not in CONTROLS]
    composites = [(o, s) for o, s in scored if o.kind in COMPOSITES]
    singles = [s for o, s in scored if o.kind == "single"]
    own = {
        (o.subject, o.recipe, o.seed, o.neuron): s
        for o in outcomes
        if o.kind == "single" and (s := o.score(name)) is not None
    }

    def components_of(o: Outcome) -> list[float]:
        found = [own.get((o.subject, o.recipe, o.seed, component)) for component in o.components]
        return [s for s in found if s is not None] if None not in found else []

    def above(highest: Callable[[list[float]], float]) -> Estimate:
        beside = [(s, components_of(o)) for o, s in composites]
        won = [s > highest(components) for s, components in beside if components]
        return share_of(won, reason="no composite has a score beside those of all its components")

    def control(kind: str) -> Control:
        mine = [(o, s) for o, s in scored if o.kind == kind]
        reason = f"no neuron of kind '{kind}' has a score"
        paired = [
            s - float(np.mean(components)) for o, s in mine if (components := components_of(o))
        ]
        return Control(
            mean=mean_of([s for _, s in mine], draws=draws, reason=reason),
            difference=estimate(
                lambda a, b: a.mean(-1) - b.mean(-1),
                [[s for _, s in mine], singles],
                draws=draws,
                reason=reason if not mine else "no single channel has a score",
            ),
            above_components=mean_of(
                paired, draws=draws, reason=f"{reason} beside those of its components"
            ),
        )

    return ScoreSummary(
        every=_separation(scored, draws),
        singles=_separation(plain, draws),
        screened=_separation([(o, s) for o, s in plain if o.screened], draws),
        above_mean=above(lambda components: float(np.mean(components))),
        above_highest=above(max),
        mean_by_m={
            m: mean_of([s for o, s in plain if o.m == m], draws=draws, reason="")
            for m in sorted({o.m for o, _ in plain})
        },
        controls=Controls(min=control("min"), copies=control("copies"), twins=control("twins")),
        ordering=_ordering(scored, draws),
        ordering_spearman=_ordering_spearman(scored, draws),
        interval_width=_interval_width(once, name, draws),
        seeds=_seeds(outcomes, name, draws),
    )


_Scored = Sequence[tuple[Outcome, float]]


def _separation(scored: _Scored, draws: int) -> Separation:
    strata: dict[tuple[str, int], list[float]] = {}
    for o, s in sorted(scored, key=lambda pair: pair[0].m):
        strata.setdefault((f"{o.subject} {o.layer}", o.m), []).append(s)
    pooled = estimate_auroc(strata, within=False, draws=draws)
    ranked = estimate_spearman(strata, within=False, draws=draws)
    # With one layer there is nothing to keep apart.
    several = len({group for group, _ in strata}) > 1
    return Separation(
        auroc=pooled,
        auroc_within=estimate_auroc(strata, within=True, draws=draws) if several else pooled,
        spearman=ranked,
        spearman_within=estimate_spearman(strata, within=True, draws=draws) if several else ranked,
        spearman_most=estimate_highest_spearman(strata),
    )


def _ordering(scored: _Scored, draws: int) -> Estimate:
    alike = [s for o, s in scored if o.kind == "twins"]
    unlike = [s for o, s in scored if o.kind in COMPOSITES and o.m == 2]
    missing = "near-duplicates" if not alike else "two random components"
    return estimate(
        auroc, [alike, unlike], draws=draws, reason=f"no composite of {missing} has a score"
    )


def _ordering_spearman(scored: _Scored, draws: int) -> Estimate:
    pairs = [
        (-o.similarity, s)
        for o, s in scored
        if o.similarity is not None and len(o.components) == 2 and o.kind in (*COMPOSITES, "twins")
    ]
    if len(pairs) < 2:
        return absent(
            "of fewer than two maxima of two components is their similarity known", len(pairs)
        )
    return _paired(lambda x: spearman(x[..., 0], x[..., 1]), pairs, draws)


def _interval_width(once: Sequence[Outcome], name: str, draws: int) -> Estimate:
    if name != PRIMARY:
        return absent(f"intervals are those of the score '{PRIMARY}'")
    widths = [
        o.score_high - o.score_low
        for o in once
        if o.score_low is not None and o.score_high is not None
    ]
    return mean_of(widths, draws=draws, reason="no neuron has an interval")


def _seeds(outcomes: Sequence[Outcome], name: str, draws: int) -> Seeds:
    by_neuron: dict[tuple[str, str], dict[int, float]] = {}
    for o in outcomes:
        if o.kind == "single" and (s := o.score(name)) is not None:
            by_neuron.setdefault((o.subject, o.neuron), {})[o.seed] = s
    seeds = sorted({seed for scores in by_neuron.values() for seed in scores})
    table = [[s[seed] for seed in seeds] for s in by_neuron.values() if len(s) == len(seeds)]
    if len(seeds) < 2 or len(table) < 2:
        nothing = absent("fewer than two single channels have scores of several seeds", len(table))
        return Seeds(icc=nothing, spearman=nothing)
    pairs = list(combinations(range(len(seeds)), 2))

    def agreement(x: Array) -> Array:
        return np.asarray(np.mean([spearman(x[..., a], x[..., b]) for a, b in pairs], axis=0))

    return Seeds(
        icc=_paired(lambda x: icc(*np.moveaxis(x, -1, 0)), table, draws),
        spearman=_paired(agreement, table, draws),
    )


def _paired(
    statistic: Callable[[Array], Array], rows: Sequence[Sequence[float]], draws: int
) -> Estimate:
    """Estimate a statistic of several values a neuron."""
    return estimate(statistic, [rows], draws=draws, reason="all values are equal")
