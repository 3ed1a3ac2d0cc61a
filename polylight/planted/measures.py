"""What is measured of planted neurons under one condition: of their images, and of each score."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from polylight.planted.outcome import COMPOSITES, CONTROLS, PRIMARY, Outcome
from polylight.planted.statistics import (
    Array,
    Estimate,
    auroc,
    estimate,
    feature_recall,
    icc,
    mean_of,
    separation,
    share_of,
    spearman,
    spearman_bound,
)

_NO_COMPOSITE = "no composite has valid images"

Estimates = dict[str, Estimate]
"""By name of the measure."""
_Scored = Sequence[tuple[Outcome, float]]


def measure_images(once: Sequence[Outcome], resamples: int) -> Estimates:
    """Measure what images show and what their clusters make of it, whatever the score.

    Args:
        once: Each neuron once.
        resamples: Of each bootstrap, > 0.

    Returns:
        ``feature_recall``: mean over composites of the share of components that are driven most
        by a valid image, and ``feature_recall_m<m>`` by number of components;
        ``feature_recall_all_images``: the same of all images, those too that are too weak to be
        valid; ``valid``: mean over singles and composites of the share of valid images;
        ``adjusted_rand``: mean over composites of the agreement of clusters with components;
        ``k_error``, ``k_exact``: mean of K - m and share with K = m over singles and composites,
        and both by m.
    """
    scored = [o for o in once if o.status == "ok" and any(o.valid)]
    plain = [o for o in scored if o.kind not in CONTROLS]
    composites = [o for o in scored if o.kind in COMPOSITES]

    def recall(some: Sequence[Outcome], counted: Callable[[Outcome], Any]) -> Estimate:
        by_m: dict[int, list[float]] = {}
        for o in sorted(some, key=lambda o: o.m):
            by_m.setdefault(o.m, []).append(float(feature_recall(o.component, counted(o), o.m)))
        return estimate(
            lambda *samples: np.concatenate(samples, -1).mean(-1),
            list(by_m.values()),
            resamples=resamples,
            reason=_NO_COMPOSITE,
        )

    def of_k(some: Sequence[Outcome], suffix: str = "") -> Estimates:
        reason = "no neuron has clusters"
        errors = [float(o.k - o.m) for o in some]
        return {
            f"k_error{suffix}": mean_of(errors, resamples=resamples, reason=reason),
            f"k_exact{suffix}": share_of([error == 0 for error in errors], reason=reason),
        }

    def agreement(o: Outcome) -> float:
        pairs = [pair for pair in zip(o.component, o.label, strict=True) if pair[1] >= 0]
        return float(adjusted_rand_score(*zip(*pairs, strict=True)))

    found = {"feature_recall": recall(composites, lambda o: o.valid)}
    for m in sorted({o.m for o in composites}):
        of_m = [o for o in composites if o.m == m]
        found[f"feature_recall_m{m}"] = recall(of_m, lambda o: o.valid)
    found |= {
        "feature_recall_all_images": recall(composites, lambda o: np.isfinite(o.activation)),
        "valid": mean_of(
            [float(np.mean(o.valid)) for o in plain],
            resamples=resamples,
            reason="no neuron has valid images",
        ),
        "adjusted_rand": mean_of(
            [agreement(o) for o in composites], resamples=resamples, reason=_NO_COMPOSITE
        ),
        **of_k(plain),
    }
    for m in sorted({o.m for o in plain}):
        found |= of_k([o for o in plain if o.m == m], f"_m{m}")
    return found


def measure_score(
    outcomes: Sequence[Outcome], once: Sequence[Outcome], name: str, resamples: int
) -> Estimates:
    """Measure how a score tells planted neurons apart.

    Args:
        outcomes: All of them, of one condition.
        once: Each neuron once.
        name: Which score.
        resamples: Of each bootstrap, > 0.

    Returns:
        ``auroc``, ``spearman``, the ``spearman_bound`` of ties, and ``auroc_within_layers`` and
        ``spearman_within_layers`` among neurons of one layer only: of all, ``_without_controls``,
        and of those ``_screened``, whose components an independent measure found to have one
        feature; ``above_mean`` and ``above_highest``: share of composites that score above the
        mean, or the highest, of their own components; ``mean_m<m>``: mean score of singles and
        composites; of each control its ``_mean``, that less the singles' (``_difference``, and
        the farthest of them), and less its own components' (``_above_components``);
        ``near_duplicates_auroc``: probability that a composite of two scores above one of
        near-duplicates; ``dissimilarity_spearman``: score with the components' correlation,
        negated, over the chosen pairs; ``interval_width``: of the neurons' own intervals;
        ``seeds_icc`` and ``seeds_spearman``: agreement of single channels between seeds.
    """
    scored = [(o, s) for o in once if (s := o.score(name)) is not None]
    plain = [(o, s) for o, s in scored if o.kind not in CONTROLS]
    composites = [(o, s) for o, s in plain if o.kind in COMPOSITES]
    singles = [s for o, s in plain if o.kind == "single"]
    of_single = {
        (o.subject, o.seed, o.neuron): s
        for o in outcomes
        if o.kind == "single" and (s := o.score(name)) is not None
    }

    def mean(values: Sequence[float], reason: str) -> Estimate:
        return mean_of(values, resamples=resamples, reason=reason)

    def beside_components(some: _Scored) -> list[tuple[float, list[float]]]:
        own = [(s, [of_single.get((o.subject, o.seed, c)) for c in o.components]) for o, s in some]
        return [(s, [c for c in cs if c is not None]) for s, cs in own if None not in cs]

    found = {
        **_separations(scored, "", resamples),
        **_separations(plain, "_without_controls", resamples),
        **_separations([(o, s) for o, s in plain if o.screened], "_screened", resamples),
    }
    beside = beside_components(composites)
    reason = "no composite has a score beside those of all its components"
    found["above_mean"] = share_of([s > float(np.mean(own)) for s, own in beside], reason=reason)
    found["above_highest"] = share_of([s > max(own) for s, own in beside], reason=reason)
    for m in sorted({o.m for o, _ in plain}):
        found[f"mean_m{m}"] = mean([s for o, s in plain if o.m == m], "")
    for kind in CONTROLS:
        mine = [(o, s) for o, s in scored if o.kind == kind]
        reason = f"no neuron of kind '{kind}' has a score"
        found[f"{kind}_mean"] = mean([s for _, s in mine], reason)
        found[f"{kind}_difference"] = estimate(
            lambda control, single: control.mean(-1) - single.mean(-1),
            [[s for _, s in mine], singles],
            resamples=resamples,
            reason=reason if not mine else "no single channel has a score",
        )
        found[f"{kind}_above_components"] = mean(
            [s - float(np.mean(own)) for s, own in beside_components(mine)],
            f"{reason} beside those of its components",
        )
    differences = [found[f"{kind}_difference"] for kind in CONTROLS]
    found["controls_difference"] = max(
        (d for d in differences if d.value is not None),
        key=lambda d: abs(d.value or 0.0),
        default=Estimate(value=None, n=0, reason="no control has a score beside singles"),
    )
    found |= _of_pairs(scored, resamples)
    widths = [
        o.score_high - o.score_low
        for o in once
        if o.score_low is not None and o.score_high is not None and name == PRIMARY
    ]
    found["interval_width"] = mean(widths, f"no neuron has an interval of the score '{name}'")
    return found | _of_seeds(of_single, resamples)


def _separations(scored: _Scored, suffix: str, resamples: int) -> Estimates:
    strata: dict[tuple[str, int], list[float]] = {}
    for o, s in sorted(scored, key=lambda pair: pair[0].m):
        strata.setdefault((f"{o.subject} {o.layer}", o.m), []).append(s)
    pooled = separation(strata, within=False, resamples=resamples)
    # With one layer there is nothing to keep apart.
    several = len({group for group, _ in strata}) > 1
    within = separation(strata, within=True, resamples=resamples) if several else pooled
    known = [o.m for o, _ in scored]
    bound = spearman_bound(known) if len(set(known)) > 1 else None
    return {
        f"auroc{suffix}": pooled[0],
        f"auroc_within_layers{suffix}": within[0],
        f"spearman{suffix}": pooled[1],
        f"spearman_within_layers{suffix}": within[1],
        f"spearman_bound{suffix}": Estimate(
            value=bound, n=len(known), reason=pooled[1].reason if bound is None else None
        ),
    }


def _of_pairs(scored: _Scored, resamples: int) -> Estimates:
    """Whether the max of two channels scores higher the less similar they are."""
    near = [s for o, s in scored if o.kind == "near_duplicates"]
    two = [s for o, s in scored if o.kind in COMPOSITES and o.m == 2]
    missing = "two components" if near else "near-duplicates"
    pairs = [
        (-o.similarity, s)
        for o, s in scored
        if o.similarity is not None and o.kind in (*COMPOSITES, "near_duplicates")
    ]
    return {
        "near_duplicates_auroc": estimate(
            auroc, [near, two], resamples=resamples, reason=f"no composite of {missing} has a score"
        ),
        "dissimilarity_spearman": estimate(
            lambda x: spearman(x[..., 0], x[..., 1]),
            [pairs],
            resamples=resamples,
            reason="all values are equal",
        )
        if len(pairs) > 1
        else Estimate(
            value=None,
            n=len(pairs),
            reason="of fewer than two composites of two components is their similarity known",
        ),
    }


def _of_seeds(of_single: Mapping[tuple[str, int, str], float], resamples: int) -> Estimates:
    """Agreement of the scores of the same single channels between all seeds."""
    by_neuron: dict[tuple[str, str], dict[int, float]] = {}
    for (subject, seed, neuron), score in of_single.items():
        by_neuron.setdefault((subject, neuron), {})[seed] = score
    seeds = sorted({seed for _, seed, _ in of_single})
    table = [[s[seed] for seed in seeds] for s in by_neuron.values() if len(s) == len(seeds)]
    pairs = list(combinations(range(len(seeds)), 2))

    def rank_agreement(x: Array) -> Array:
        return np.asarray(np.mean([spearman(x[..., a], x[..., b]) for a, b in pairs], axis=0))

    def agreement(statistic: Callable[[Array], Array]) -> Estimate:
        if len(seeds) < 2 or len(table) < 2:
            reason = "fewer than two single channels have scores of several seeds"
            return Estimate(value=None, n=len(table), reason=reason)
        return estimate(statistic, [table], resamples=resamples, reason="all values are equal")

    return {
        "seeds_icc": agreement(lambda x: icc(*np.moveaxis(x, -1, 0))),
        "seeds_spearman": agreement(rank_agreement),
    }
