"""Charts of how the scores of each layer are spread."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polylight.report.content import Run
from polylight.report.look import PALETTE, TICKS, UNIT, Spec, Width, count, dress

_LEVELS = {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}
# So many neurons can be told apart as single marks.
_SINGLE = 400
_LONGEST = 32
# The height is that of the rows, whatever the room.
_AUTOSIZE = {"type": "fit-x", "contains": "padding"}
# Rows are lower where there are many.
_STEP, _LOW_STEP, _MANY_ROWS = 26, 18, 24


def score_by_layer(run: Run, *, width: Width = "container", ink: str = "currentColor") -> Spec:
    """Show how the scores of each layer are spread: the 5, 25, 50, 75 and 95 % points.

    Where the run has few neurons, each is a mark of its own as well.

    Args:
        run: The run; neurons without a score are left out, and a layer of nothing else is empty.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification, of a size that grows with the layers, not with the neurons.
    """
    rows = _rows([run], [run.name])
    scored = sum(row["n"] for row in rows)
    marks = _marks(rows, {"value": PALETTE[0]}, ink)
    if scored <= _SINGLE:
        marks.insert(0, _single(run, ink))
    return dress(
        {
            "data": {"values": rows},
            "layer": marks,
            "height": len(rows) * (_STEP if len(rows) <= _MANY_ROWS else _LOW_STEP),
            "autosize": _AUTOSIZE,
        },
        f"Scores of {count(scored, 'neuron')} in {count(len(rows), 'layer')}: the median, the "
        "middle half and the middle 90 % of each layer.",
        width,
        ink,
    )


def paired_distributions(
    runs: Sequence[Run],
    names: Sequence[str],
    *,
    width: Width = "container",
    ink: str = "currentColor",
) -> Spec:
    """Show how the scores of each layer are spread in several runs, one below the other.

    Args:
        runs: The runs; the place of a layer that a run does not have is left free.
        names: What to call each run, all different.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification; its size is as that of ``score_by_layer``.
    """
    rows = _rows(runs, names)
    layers = len({row["layer"] for row in rows})
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    colour = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": list(names), "range": colours},
        "legend": {
            "title": None,
            "orient": "top",
            "symbolType": "stroke",
            "symbolStrokeWidth": 7,
            "labelLimit": 400,
        },
    }
    marks = _marks(rows, colour, ink)
    for mark in marks:
        mark["encoding"]["yOffset"] = {
            "field": "run",
            "type": "nominal",
            "scale": {"domain": list(names)},
        }
    return dress(
        {
            "data": {"values": rows},
            "layer": marks,
            "height": len(rows) * _LOW_STEP,
            "autosize": _AUTOSIZE,
        },
        f"Scores in {count(layers, 'layer')} of {count(len(names), 'run')}: the median, the "
        "middle half and the middle 90 % of each.",
        width,
        ink,
    )


def _rows(runs: Sequence[Run], names: Sequence[str]) -> list[Spec]:
    """Sum the scores of each layer of each run up."""
    scores = [_scores(run) for run in runs]
    rows: list[Spec] = []
    for layer in dict.fromkeys(layer.name for run in runs for layer in run.layers):
        for name, of_run in zip(names, scores, strict=True):
            known = of_run.get(layer, [])
            row: Spec = {"layer": layer, "run": name, "n": len(known)}
            if known:
                points = np.percentile(known, list(_LEVELS.values())).round(4).tolist()
                row |= dict(zip(_LEVELS, points, strict=True))
            rows.append(row)
    return rows


def _scores(run: Run) -> dict[str, list[float]]:
    """Collect the scores that exist, by layer."""
    found = {}
    for layer in run.layers:
        scores = [run.neurons[position].values["score"] for position in layer.positions]
        found[layer.name] = [score for score in scores if score is not None]
    return found


def _marks(rows: Sequence[Spec], colour: Mapping[str, Any], ink: str) -> list[Spec]:
    """Draw a thin line, a thick line and a dot for each row, and how many neurons it has."""
    # Else marks would be drawn at 0 where a layer has no score.
    known = [{"filter": "datum.n > 0"}]
    tooltip = [
        {"field": "layer", "type": "nominal"},
        {"field": "n", "type": "quantitative", "title": "neurons"},
        *(
            {"field": level, "type": "quantitative", "title": f"{at} %", "format": ".3f"}
            for level, at in _LEVELS.items()
        ),
    ]
    shared = {"y": _layers(rows), "color": dict(colour), "tooltip": tooltip}
    return [
        {
            "transform": known,
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
            "encoding": {**shared, "x": _score("p5"), "x2": {"field": "p95"}},
        },
        {
            "transform": known,
            "mark": {"type": "rule", "strokeWidth": 7, "strokeCap": "round", "opacity": 0.5},
            "encoding": {**shared, "x": _score("p25"), "x2": {"field": "p75"}},
        },
        {
            "transform": known,
            "mark": {"type": "point", "filled": True, "size": 48, "opacity": 1},
            "encoding": {**shared, "x": _score("p50"), "color": {"value": ink}},
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 10, "color": ink, "opacity": 0.6},
            "encoding": {
                "y": _layers(rows),
                "x": {"value": "width"},
                "text": {"field": "n", "type": "quantitative", "format": ","},
            },
        },
    ]


def _single(run: Run, ink: str) -> Spec:
    """Draw each neuron as a stroke."""
    values = [
        {"layer": layer.name, "score": round(score, 4), "neuron": run.neurons[position].name}
        for layer in run.layers
        for position in layer.positions
        if (score := run.neurons[position].values["score"]) is not None
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "tick", "color": ink, "opacity": 0.35, "thickness": 1, "size": 14},
        "encoding": {
            "y": _layers([{"layer": layer.name} for layer in run.layers]),
            "x": _score("score"),
            "tooltip": [
                {"field": "neuron", "type": "nominal"},
                {"field": "score", "type": "quantitative", "format": ".3f"},
            ],
        },
    }


def _layers(rows: Sequence[Spec]) -> Spec:
    """Make an axis of layers, in their order."""
    names = list(dict.fromkeys(row["layer"] for row in rows))
    return {
        "field": "layer",
        "type": "nominal",
        "scale": {"domain": names},
        "title": None,
        # The end of a long name tells it from others.
        "axis": {"grid": False, "labelExpr": f"truncate(datum.label, {_LONGEST}, 'left')"},
    }


def _score(field: str) -> Spec:
    """Make an axis of scores."""
    return {
        "field": field,
        "type": "quantitative",
        "scale": UNIT,
        "title": "score",
        "axis": {"values": TICKS},
    }
