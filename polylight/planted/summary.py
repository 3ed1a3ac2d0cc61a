"""How well the score tells one feature from more: all outcomes in one tree of numbers."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polylight.errors import InputError, nearest
from polylight.planted.estimate import Estimate, absent
from polylight.planted.facets import ImageSummary, images_of
from polylight.planted.outcome import KINDS, PRIMARY, Outcome, first_seeds
from polylight.planted.separation import Controls, ScoreSummary, scores_of


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What is summed up: a recipe, over everything, one subject, or one layer of it."""

    recipe: str
    subject: str | None
    """None for all subjects."""
    layer: str | None
    """None for all layers."""
    neurons: Mapping[str, int]
    """Planted neurons by kind."""
    unscored: Mapping[str, int]
    """Those without a score, by status."""
    images: ImageSummary
    scores: Mapping[str, ScoreSummary]
    """By name of the score."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A recipe's overall number beside what it has to be."""

    recipe: str
    name: str
    target: float
    value: float | None
    met: bool | None
    """None where there is no value."""
    n: int
    reason: str | None
    """Why there is no value."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The proof of the score."""

    scopes: tuple[Scope, ...]
    """Of each recipe: everything; each subject, if there are several; each layer."""
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """The tree as JSON values; names are always all there, and what has no value is null.

        Returns:
            Nested dictionaries, lists, text and numbers. Keys are text.
        """
        return to_json(self)


def overall(summary: Summary) -> list[Scope]:
    """List what was found over everything, of each recipe."""
    return [scope for scope in summary.scopes if scope.subject is None]


def to_json(record: Summary | Scope) -> dict[str, Any]:
    """Write a record as JSON values: nested dictionaries, lists, text and numbers."""
    tree: dict[str, Any] = _plain(dataclasses.asdict(record))
    return tree


def summarise(
    outcomes: Sequence[Outcome], targets: Mapping[str, float], *, draws: int = 2000
) -> Summary:
    """Sum outcomes up.

    Every neuron counts once, with its lowest seed; the others only show how far seeds agree.

    Args:
        outcomes: Of any subjects, recipes, layers and seeds.
        targets: What the primary score of a recipe has to reach over everything, named as in
            ``MEASURES``: a least, or for ``AT_MOST`` a most.
        draws: Draws of each bootstrap, > 0.

    Returns:
        The summary.

    Raises:
        InputError: If there are no outcomes, one comes twice, or a target is of no such name.
    """
    for name in targets:
        if name not in MEASURES:
            raise InputError(f"there is no target '{name}'; {nearest(name, MEASURES)}.")
    if not outcomes:
        raise InputError("there are no outcomes to sum up; score some planted neurons first.")
    first_seeds(outcomes)
    scopes = [
        _scope(recipe, subject, layer, outcomes, draws)
        for recipe in dict.fromkeys(o.recipe for o in outcomes)
        for subject, layer in _places([o for o in outcomes if o.recipe == recipe])
    ]
    verdicts = [
        _verdict(scope, name, target)
        for scope in scopes
        if scope.subject is None
        for name, target in targets.items()
    ]
    return Summary(scopes=tuple(scopes), verdicts=tuple(verdicts))


def _places(outcomes: Sequence[Outcome]) -> list[tuple[str | None, str | None]]:
    """List what a recipe is summed up over, the widest first."""
    subjects = list(dict.fromkeys(o.subject for o in outcomes))
    places: list[tuple[str | None, str | None]] = [(None, None)]
    for subject in subjects:
        if len(subjects) > 1:
            places.append((subject, None))
        layers = dict.fromkeys(o.layer for o in outcomes if o.subject == subject)
        places += [(subject, layer) for layer in layers]
    return places


def _scope(
    recipe: str,
    subject: str | None,
    layer: str | None,
    outcomes: Sequence[Outcome],
    draws: int,
) -> Scope:
    here = [
        o
        for o in outcomes
        if o.recipe == recipe and subject in (None, o.subject) and layer in (None, o.layer)
    ]
    once = first_seeds(here)
    kinds = Counter(o.kind for o in once)
    names = dict.fromkeys(name for o in outcomes for name in o.scores)
    return Scope(
        recipe=recipe,
        subject=subject,
        layer=layer,
        neurons={kind: kinds[kind] for kind in KINDS},
        unscored=dict(Counter(o.status for o in once if o.status != "ok")),
        images=images_of(once, draws),
        scores={name: scores_of(here, once, name, draws) for name in names},
    )


def _worst(controls: Controls) -> Estimate:
    """The difference from singles that is largest in size, of the controls that there are."""
    differences = [c.difference for c in (controls.min, controls.copies, controls.twins)]
    known = [d for d in differences if d.value is not None]
    if not known:
        return absent("no control has a score beside singles")
    return max(known, key=lambda d: abs(d.value or 0.0))


_OF_SCORE: dict[str, Callable[[ScoreSummary], Estimate]] = {
    "auroc": lambda s: s.every.auroc,
    "auroc_within": lambda s: s.every.auroc_within,
    "auroc_singles": lambda s: s.singles.auroc,
    "auroc_screened": lambda s: s.screened.auroc,
    "spearman": lambda s: s.every.spearman,
    "spearman_most": lambda s: s.every.spearman_most,
    "spearman_within": lambda s: s.every.spearman_within,
    "spearman_singles": lambda s: s.singles.spearman,
    "spearman_screened": lambda s: s.screened.spearman,
    "spearman_screened_most": lambda s: s.screened.spearman_most,
    "above_mean": lambda s: s.above_mean,
    "above_highest": lambda s: s.above_highest,
    "min_difference": lambda s: s.controls.min.difference,
    "copies_difference": lambda s: s.controls.copies.difference,
    "twins_difference": lambda s: s.controls.twins.difference,
    "controls_difference": lambda s: _worst(s.controls),
    "ordering": lambda s: s.ordering,
    "seeds_spearman": lambda s: s.seeds.spearman,
    "seeds_icc": lambda s: s.seeds.icc,
}
_OF_IMAGES: dict[str, Callable[[ImageSummary], Estimate]] = {
    "facet_recall": lambda i: i.facet_recall,
    "facets_made": lambda i: i.facets_made,
    "valid": lambda i: i.valid,
    "adjusted_rand": lambda i: i.adjusted_rand,
    "k_exact": lambda i: i.k.exact,
    "k_error": lambda i: i.k.error,
}
MEASURES = (*_OF_SCORE, *_OF_IMAGES)
"""Names of what is measured, which a target may be set for."""
AT_MOST = (
    "min_difference",
    "copies_difference",
    "twins_difference",
    "controls_difference",
    "k_error",
)
"""Measures whose size has to be no more than the target; the others have to be no less."""


def measure(scope: Scope, score: str, name: str) -> Estimate:
    """Look up what was measured.

    Args:
        scope: Of which neurons.
        score: Of which score; measures of images and clusters are the same for all.
        name: One of ``MEASURES``.

    Returns:
        The estimate; without a value where no neuron has that score.
    """
    if name in _OF_IMAGES:
        return _OF_IMAGES[name](scope.images)
    if score not in scope.scores:
        return absent(f"no neuron has a score '{score}'")
    return _OF_SCORE[name](scope.scores[score])


def _verdict(scope: Scope, name: str, target: float) -> Verdict:
    found = measure(scope, PRIMARY, name)
    met = None
    if found.value is not None:
        met = abs(found.value) <= target if name in AT_MOST else found.value >= target
    return Verdict(
        recipe=scope.recipe,
        name=name,
        target=target,
        value=found.value,
        met=met,
        n=found.n,
        reason=found.reason,
    )


def _plain(tree: Any) -> Any:
    """Turn keys into text and tuples into lists, as JSON has them."""
    if isinstance(tree, Mapping):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    return tree
