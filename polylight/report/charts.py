"""Charts of a run as Vega-Lite specifications: drawn by a browser, or as SVG for the PDF.

Every function takes the width of the drawing in pixels, or ``container`` for that of the element
which a page gives it, and the colour of text, axes and neutral marks; ``currentColor`` is that of
the text around it.
"""

import math
from collections import Counter
from collections.abc import Sequence

from polylight.report.look import PALETTE, TICKS, UNIT, Spec, Width, count, dress, to_svg
from polylight.report.matrix import similarity_matrix
from polylight.report.spread import paired_distributions, score_by_layer

__all__ = [
    "PALETTE",
    "Spec",
    "bic_curve",
    "k_histogram",
    "paired_distributions",
    "paired_scores",
    "score_by_layer",
    "score_histogram",
    "similarity_matrix",
    "to_svg",
]

_BINS = 20


def score_histogram(
    scores: Sequence[float], *, width: Width = "container", ink: str = "currentColor"
) -> Spec:
    """Count scores in 20 bins of equal width.

    Args:
        scores: Scores in [0, 1]; 1 belongs to the last bin.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification.
    """
    counts = [0] * _BINS
    for score in scores:
        counts[min(int(score * _BINS), _BINS - 1)] += 1
    values = [
        {"low": i / _BINS, "high": (i + 1) / _BINS, "n": n} for i, n in enumerate(counts) if n
    ]
    return dress(
        {
            "data": {"values": values},
            "mark": {"type": "bar", "color": PALETTE[0], "binSpacing": 2},
            "encoding": {
                "x": {
                    "field": "low",
                    "type": "quantitative",
                    "bin": {"binned": True, "step": 1 / _BINS},
                    "scale": UNIT,
                    "title": "score",
                    "axis": {"values": TICKS, "grid": False, "format": ".1f"},
                },
                "x2": {"field": "high"},
                "y": _frequency(len(scores)),
                "tooltip": [
                    {"field": "low", "title": "score from", "format": ".2f"},
                    {"field": "high", "title": "to", "format": ".2f"},
                    {"field": "n", "title": "neurons"},
                ],
            },
            "height": 160,
        },
        f"Histogram of the scores of {count(len(scores), 'neuron')}.",
        width,
        ink,
    )


def k_histogram(
    ks: Sequence[int], *, width: Width = "container", ink: str = "currentColor"
) -> Spec:
    """Count neurons by their number of clusters K, from 1 to the largest.

    Args:
        ks: Numbers of clusters, >= 1.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification.
    """
    values = [{"k": k, "n": n} for k, n in sorted(Counter(ks).items())]
    return dress(
        {
            "data": {"values": values},
            "mark": {"type": "bar", "color": PALETTE[0], "width": {"band": 0.8}},
            "encoding": {
                "x": {
                    "field": "k",
                    "type": "ordinal",
                    "scale": {"domain": list(range(1, max(ks, default=1) + 1))},
                    "title": "clusters K",
                    "axis": {"labelAngle": 0},
                },
                "y": _frequency(len(ks)),
                "tooltip": [{"field": "k", "title": "K"}, {"field": "n", "title": "neurons"}],
            },
            "height": 160,
        },
        f"Number of clusters K of {count(len(ks), 'neuron')}.",
        width,
        ink,
    )


def bic_curve(
    bic: Sequence[float],
    k: int | None,
    *,
    width: Width = "container",
    ink: str = "currentColor",
) -> Spec:
    """Show the criterion of each number of clusters, and mark the K that was chosen.

    Args:
        bic: For K = 1, 2, ...; in nats, the larger the better; NaN where K was out of reach.
        k: The K that was chosen; None where there is none.
        width: Width in pixels.
        ink: Colour of text, axes and the curve.

    Returns:
        A specification.
    """
    values = [{"k": i, "bic": round(v, 3)} for i, v in enumerate(bic, 1) if math.isfinite(v)]
    encoding = {
        "x": {
            "field": "k",
            "type": "ordinal",
            "scale": {"domain": [value["k"] for value in values]},
            "title": "clusters K",
            "axis": {"labelAngle": 0},
        },
        "y": {
            "field": "bic",
            "type": "quantitative",
            "scale": {"zero": False, "padding": 8} if values else {"domain": [0, 1]},
            "title": "BIC",
            "axis": {"format": ",d", "tickCount": 4, "labels": bool(values), "grid": bool(values)},
        },
        "tooltip": [
            {"field": "k", "title": "K"},
            {"field": "bic", "title": "BIC", "format": ",.1f"},
        ],
    }
    chosen = [{"filter": f"datum.k === {-1 if k is None else k}"}]
    accent = PALETTE[0]
    return dress(
        {
            "data": {"values": values},
            "encoding": encoding,
            "layer": [
                {"mark": {"type": "line", "color": ink, "opacity": 0.5, "strokeWidth": 1.5}},
                {"mark": {"type": "point", "filled": True, "color": ink, "size": 30, "opacity": 1}},
                {
                    "transform": chosen,
                    "mark": {
                        "type": "point",
                        "filled": True,
                        "color": accent,
                        "size": 130,
                        "opacity": 1,
                    },
                },
                {
                    "transform": chosen,
                    "mark": {"type": "text", "dy": -14, "color": ink, "fontWeight": "bold"},
                    "encoding": {"text": {"value": f"K = {k}"}},
                },
            ],
            "height": 160,
        },
        "Bayesian information criterion by number of clusters"
        + ("." if k is None else f"; K = {k} was chosen."),
        width,
        ink,
    )


def paired_scores(
    a: Sequence[float],
    b: Sequence[float],
    names: Sequence[str],
    labels: tuple[str, str] = ("A", "B"),
    *,
    size: int = 400,
    ink: str = "currentColor",
) -> Spec:
    """Show the score of each neuron in two runs; on the dashed line both are equal.

    Args:
        a: Scores in [0, 1] in the one run, across.
        b: Scores of the same neurons in the other run, upwards.
        names: The neurons.
        labels: What to call the runs.
        size: Width and height in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification.
    """
    values = [
        {"a": round(x, 4), "b": round(y, 4), "neuron": name}
        for x, y, name in zip(a, b, names, strict=True)
    ]

    def axis(field: str, label: str) -> Spec:
        return {
            "field": field,
            "type": "quantitative",
            "scale": UNIT,
            "title": f"score in {label}",
            "axis": {"values": TICKS, "titleLimit": size},
        }

    return dress(
        {
            "layer": [
                {
                    "data": {"values": [{"a": 0, "b": 0}, {"a": 1, "b": 1}]},
                    "mark": {
                        "type": "line",
                        "color": ink,
                        "opacity": 0.4,
                        "strokeDash": [4, 4],
                        "strokeWidth": 1,
                    },
                    "encoding": {
                        "x": {"field": "a", "type": "quantitative"},
                        "y": {"field": "b", "type": "quantitative"},
                    },
                },
                {
                    "data": {"values": values},
                    "mark": {
                        "type": "point",
                        "filled": True,
                        "color": PALETTE[0],
                        "size": 36 if len(values) <= 500 else 16,
                        "opacity": 0.6 if len(values) <= 500 else 0.35,
                    },
                    "encoding": {
                        "x": axis("a", labels[0]),
                        "y": axis("b", labels[1]),
                        "tooltip": [
                            {"field": "neuron", "type": "nominal"},
                            {"field": "a", "title": labels[0], "format": ".3f"},
                            {"field": "b", "title": labels[1], "format": ".3f"},
                        ],
                    },
                },
            ],
            "height": size,
        },
        f"Scores of {count(len(values), 'neuron')} in two runs.",
        size,
        ink,
    )


def _frequency(neurons: int) -> Spec:
    """Make an axis of whole numbers of neurons."""
    return {
        "field": "n",
        "type": "quantitative",
        "title": "neurons",
        "scale": {} if neurons else {"domain": [0, 1]},
        "axis": {
            "format": ",d",
            **({"tickCount": 4, "tickMinStep": 1} if neurons else {"values": [0, 1]}),
        },
    }
