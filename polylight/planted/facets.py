"""What the images of planted neurons show, and what their clusters make of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polylight.planted.estimate import Estimate, estimate, mean_of, share_of
from polylight.planted.outcome import COMPOSITES, CONTROLS, Outcome
from polylight.planted.statistics import Array, adjusted_rand, facet_recall, k_error

_NO_COMPOSITE = "no composite has images that count"


@dataclass(frozen=True, kw_only=True)
class KError:
    """Number of clusters beside number of features."""

    error: Estimate
    """Mean of K - m."""
    exact: Estimate
    """Share with K = m."""


@dataclass(frozen=True, kw_only=True)
class ImageSummary:
    """What the images and their clusters are, whatever the score."""

    facet_recall: Estimate
    """Mean over composites of the share of components that win an image that counts."""
    facet_recall_by_m: dict[int, Estimate]
    facets_made: Estimate
    """The same of all images, those too that are too weak to count."""
    valid: Estimate
    """Mean over singles and composites of the share of images that count."""
    adjusted_rand: Estimate
    """Mean over composites of the agreement of clusters with winning components."""
    k: KError
    """Over singles and composites."""
    k_by_m: dict[int, KError]


def images_of(outcomes: Sequence[Outcome], draws: int) -> ImageSummary:
    """Sum up images and clusters.

    Args:
        outcomes: Each neuron once.
        draws: Draws of each bootstrap, > 0.

    Returns:
        The summary.
    """
    scored = [o for o in outcomes if o.status == "ok" and any(o.valid)]
    plain = [o for o in scored if o.kind not in CONTROLS]
    composites = [o for o in scored if o.kind in COMPOSITES]
    recalls = [(o.m, float(facet_recall(o.winner, o.valid, o.m))) for o in composites]
    agreement = [
        adjusted_rand(
            [label for label in o.labels if label >= 0],
            [component for component, vote in zip(o.winner, o.valid, strict=True) if vote],
        )
        for o in composites
    ]
    made = [
        (o.m, float(facet_recall(o.winner, np.isfinite(o.activation), o.m))) for o in composites
    ]

    def recall_of(found: Sequence[tuple[int, float]], wanted: set[int]) -> Estimate:
        strata = [[r for m, r in found if m == w] for w in sorted(wanted)]
        return estimate(_pooled_mean, strata, draws=draws, reason=_NO_COMPOSITE)

    def k_of(some: Sequence[Outcome]) -> KError:
        reason = "no neuron has clusters"
        apart = [float(k_error([o.k], [o.m])[0]) for o in some]
        exact = [o.k == o.m for o in some]
        return KError(
            error=mean_of(apart, draws=draws, reason=reason), exact=share_of(exact, reason=reason)
        )

    features = sorted({m for m, _ in recalls})
    return ImageSummary(
        facet_recall=recall_of(recalls, set(features)),
        facet_recall_by_m={m: recall_of(recalls, {m}) for m in features},
        facets_made=recall_of(made, set(features)),
        valid=mean_of(
            [float(np.mean(o.valid)) for o in plain],
            draws=draws,
            reason="no neuron has images that count",
        ),
        adjusted_rand=mean_of(agreement, draws=draws, reason=_NO_COMPOSITE),
        k=k_of(plain),
        k_by_m={m: k_of([o for o in plain if o.m == m]) for m in sorted({o.m for o in plain})},
    )


def _pooled_mean(*samples: Array) -> Array:
    """Mean of the samples put together."""
    return np.asarray(np.concatenate(samples, -1).mean(-1))
