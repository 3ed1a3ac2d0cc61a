"""A validation summed up: scopes, targets, and whether a score comes out the same again."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from polylight.errors import InputError, nearest
from polylight.planted.measures import Estimates, measure_images, measure_score
from polylight.planted.outcome import KINDS, PRIMARY, Outcome
from polylight.planted.statistics import Estimate, icc, spearman
from polylight.planted.table import AT_MOST, MEASURES
from polylight.run.schema import NeuronRow

TARGETS = {
    "auroc": 0.93,
    "auroc_screened": 0.97,
    "spearman": 0.85,
    "spearman_screened": 0.90,
    "above_mean": 0.98,
    "above_highest": 0.95,
    "feature_recall": 0.97,
    "controls_difference": 0.05,
}
"""What the primary score is meant to reach over everything."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is summed up: a condition, over everything, one subject, or one layer of it."""

    condition: str
    subject: str | None
    """None for all subjects."""
    layer: str | None
    """None for all layers."""
    neurons: Mapping[str, int]
    """Planted neurons by kind."""
    unscored: Mapping[str, int]
    """Those without a score, by status."""
    images: Estimates
    """What the images and their clusters are (:func:`measure_images`)."""
    scores: Mapping[str, Estimates]
    """What each score makes of the neurons, by its name (:func:`measure_score`)."""


def summarise(outcomes: Sequence[Outcome], *, resamples: int) -> list[Scope]:
    """Sum outcomes up.

    Every neuron counts once, with its lowest seed; the others only show how far seeds agree.

    Args:
        outcomes: Of any subjects, conditions, layers and seeds.
        resamples: Of each bootstrap, > 0.

    Returns:
        Of each condition: everything; each subject, if there are several; each layer.

    """
    scores = list(dict.fromkeys(name for o in outcomes for name in o.scores))
    scopes = []
    for condition in dict.fromkeys(o.condition for o in outcomes):
        mine = [o for o in outcomes if o.condition == condition]
        subjects = list(dict.fromkeys(o.subject for o in mine))
        places: list[tuple[str | None, str | None]] = [(None, None)]
        for name in subjects:
            places += [(name, None)] if len(subjects) > 1 else []
            places += dict.fromkeys((name, o.layer) for o in mine if o.subject == name)
        for subject, layer in places:
            here = [o for o in mine if subject in (None, o.subject) and layer in (None, o.layer)]
            once = first_seeds(here)
            kinds = Counter(o.kind for o in once)
            scopes.append(
                Scope(
                    condition=condition,
                    subject=subject,
                    layer=layer,
                    neurons={kind: kinds[kind] for kind in KINDS},
                    unscored=dict(Counter(o.status for o in once if o.status != "ok")),
                    images=measure_images(once, resamples),
                    scores={name: measure_score(here, once, name, resamples) for name in scores},
                )
            )
    return scopes


def first_seeds(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Keep the outcome of the lowest seed of every neuron of a condition.

    Outcomes of one neuron are no independent observations, so statistics take one of each.
    """
    lowest: dict[tuple[str, str], int] = {}
    for o in outcomes:
        lowest[o.subject, o.neuron] = min(o.seed, lowest.get((o.subject, o.neuron), o.seed))
    return [o for o in outcomes if o.seed == lowest[o.subject, o.neuron]]


def check_targets(scopes: Sequence[Scope], targets: Mapping[str, float]) -> list[dict[str, Any]]:
    """Hold what every condition reaches over everything against what it has to.

    Args:
        scopes: From :func:`summarise`.
        targets: What the primary score has to reach, by name of the measure (``MEASURES``): a
            least, or for ``AT_MOST`` a most.

    Returns:
        Of each condition and target: condition, measure, target, value, n, reason, and met, which
        is None where there is no value.

    Raises:
        InputError: If a target is of no such name.
    """
    for name in targets:
        if name not in MEASURES:
            raise InputError(f"there is no target '{name}'; {nearest(name, MEASURES)}.")
    checked = []
    for scope in scopes:
        if scope.subject is not None:
            continue
        for name, target in targets.items():
            found = {**scope.images, **scope.scores.get(PRIMARY, {})}.get(name)
            found = found or Estimate(value=None, n=0, reason=f"no neuron has a score '{PRIMARY}'")
            met = None
            if found.value is not None:
                met = abs(found.value) <= target if name in AT_MOST else found.value >= target
            result = {"value": found.value, "met": met, "n": found.n, "reason": found.reason}
            named = {"condition": scope.condition, "measure": name, "target": target}
            checked.append(named | result)
    return checked


def agreement(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Compare two scores of each of some neurons.

    Args:
        first: Scores [n].
        second: Scores [n] of the same neurons.

    Returns:
        ``neurons``: n; ``spearman``: rank correlation; ``icc``: ICC(2,1), of which 1 is perfect
        agreement; None for fewer than three neurons.
    """
    few = len(first) < 3
    return {
        "neurons": len(first),
        "spearman": None if few else float(spearman(first, second)),
        "icc": None if few else float(icc(first, second)),
    }


def calibration(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Count how many 95 % intervals hold the mean score that the other seeds give.

    Args:
        outcomes: Of one condition and several seeds.

    Returns:
        ``neurons``: those with an interval of at least three seeds; ``seeds``: the most of any of
        them; ``coverage``: share of the intervals that hold the mean of the other seeds;
        ``width``: their mean width. None where there are no such neurons.
    """
    by_neuron = defaultdict[tuple[str, str], list[tuple[float, float, float]]](list)
    for o in outcomes:
        score = o.score(PRIMARY)
        if score is not None and o.score_low is not None and o.score_high is not None:
            by_neuron[o.subject, o.neuron].append((score, o.score_low, o.score_high))
    groups = [np.array(found) for found in by_neuron.values() if len(found) >= 3]
    if not groups:
        return None
    held, widths = [], []
    for score, low, high in (group.T for group in groups):
        others = np.array([np.delete(score, index).mean() for index in range(len(score))])
        held += ((low <= others) & (others <= high)).tolist()
        widths += (high - low).tolist()
    return {
        "neurons": len(groups),
        "seeds": max(map(len, groups)),
        "coverage": float(np.mean(held)),
        "width": float(np.mean(widths)),
    }


def compare_with_photos(rows: Sequence[NeuronRow], pooled: Mapping[str, Tensor]) -> dict[str, Any]:
    """Compare how hard their images drive single channels with how hard photos do.

    Args:
        rows: Rows of single channels (their mean over positions).
        pooled: By layer, activations of the photos [N, C].

    Returns:
        ``photos``: N; ``percentile``: by channel as text, the share of the photos whose activation
        is below the median of the channel's valid images, in [0, 1]; ``above_best``: share of the
        channels whose median is above the best photo's activation.

    Raises:
        InputError: If no row has a score.
    """
    percentile, above, photos = {}, [], 0
    for row in rows:
        if row.status == "ok" and row.channel is not None:
            natural = pooled[row.layer][:, row.channel].double().numpy()
            photos = len(natural)
            median = float(np.median(row.activation[row.label >= 0]))
            percentile[row.neuron] = float((natural < median).mean())
            above.append(median > natural.max())
    if not above:
        raise InputError("no single channel has a score to compare with photos.")
    return {"photos": photos, "percentile": percentile, "above_best": float(np.mean(above))}


def as_json(tree: Any) -> Any:
    """Turn records into JSON values: keys are text, and what is not finite is null."""
    if isinstance(tree, Scope | Estimate | Outcome):
        return as_json(asdict(tree))
    if isinstance(tree, Mapping):
        return {str(key): as_json(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_json(value) for value in tree]
    if isinstance(tree, float) and not np.isfinite(tree):
        return None
    return tree
