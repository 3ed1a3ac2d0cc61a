"""Charts of a run, made by altair and drawn as SVG without a browser.

Every function gives a Vega-Lite specification. It takes the width of the drawing in pixels and the
colour of text, axes and neutral marks; ``currentColor`` is that of the text around it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from polylight.report.content import Run
from polylight.report.rasters import PALETTE
from polylight.report.words import counted

__all__ = [
    "PALETTE",
    "Spec",
    "bic_curve",
    "k_histogram",
    "paired_distributions",
    "paired_scores",
    "score_by_layer",
    "score_histogram",
    "to_svg",
]

Spec = dict[str, Any]
"""A Vega-Lite specification."""

_VERSION = "6.4"
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
_INK = "currentColor"
_BINS = 20
_LEVELS = {"p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95}
# So many neurons can be told apart as single marks.
_SINGLE, _POINTS = 400, 500
_LONGEST = 32
# Rows are lower where there are many.
_STEP, _LOW_STEP, _MANY_ROWS = 26, 18, 24


def to_svg(spec: Spec) -> str:
    """Draw a chart; text stays text, and nothing is looked up in a network.

    Args:
        spec: A specification of this module.

    Returns:
        An SVG file.
    """
    rest = {**spec, "data": {"name": "rows"}, "description": ""}
    vega = _compiled(json.dumps(rest, sort_keys=True))
    values = spec["data"]["values"]
    data = [{**each, "values": values} if each["name"] == "rows" else each for each in vega["data"]]
    whole = _as_xml_text({**vega, "data": data})
    svg: str = vl_convert.vega_to_svg(whole, allowed_base_urls=[])
    return svg


def _as_xml_text(value: Any) -> Any:
    """Replace characters that no SVG file can hold; with one of them the converter aborts."""
    match value:
        case str():
            return _NO_XML.sub("\ufffd", value)
        case dict():
            return {key: _as_xml_text(inner) for key, inner in value.items()}
        case list():
            return [_as_xml_text(inner) for inner in value]
        case _:
            return value


@lru_cache(maxsize=64)
def _compiled(spec: str) -> Spec:
    """Compile a chart without its data: those of a thousand neurons differ by the data alone."""
    vega: Spec = vl_convert.vegalite_to_vega(json.loads(spec), vl_version=_VERSION)
    return vega


def score_histogram(scores: Sequence[float], *, width: int = 340, ink: str = _INK) -> Spec:
    """Count scores in 20 bins of equal width.

    Args:
        scores: Scores in [0, 1]; 1 belongs to the last bin.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification.
    """
    counts = Counter(min(int(score * _BINS), _BINS - 1) for score in scores)
    rows = [{"low": i / _BINS, "high": (i + 1) / _BINS, "n": n} for i, n in sorted(counts.items())]
    chart = (
        alt.Chart(_data(rows), height=160)
        .mark_bar(color=PALETTE[0], binSpacing=2)
        .encode(
            alt.X("low:Q", bin="binned", scale=_scale(), title="score").axis(
                grid=False, format=".1f"
            ),
            alt.X2("high"),
            _frequency(len(scores)),
        )
    )
    return _finished(
        chart, f"Histogram of the scores of {counted(len(scores), 'neuron')}.", width, ink
    )


def k_histogram(ks: Sequence[int], *, width: int = 340, ink: str = _INK) -> Spec:
    """Count neurons by their number of clusters K, from 1 to the largest.

    Args:
        ks: Numbers of clusters, >= 1.
        width: Width in pixels.
        ink: Colour of text and axes.

    Returns:
        A specification.
    """
    domain = list(range(1, max(ks, default=1) + 1))
    rows = [{"k": k, "n": n} for k, n in sorted(Counter(ks).items())]
    chart = (
        alt.Chart(_data(rows), height=160)
        .mark_bar(color=PALETTE[0])
        .encode(
            alt.X("k:O", title="clusters K", axis=alt.Axis(labelAngle=0)).scale(domain=domain),
            _frequency(len(ks)),
        )
    )
    return _finished(chart, f"Number of clusters K of {counted(len(ks), 'neuron')}.", width, ink)


def bic_curve(bic: Sequence[float], k: int | None, *, width: int = 340, ink: str = _INK) -> Spec:
    """Show the BIC of each number of clusters, and mark the K that was chosen.

    Args:
        bic: For K = 1, 2, ...; in nats, the larger the better; NaN where K was out of reach.
        k: The K that was chosen; None where there is none.
        width: Width in pixels.
        ink: Colour of text, axes and the curve.

    Returns:
        A specification.
    """
    rows = [{"k": i, "bic": round(v, 3)} for i, v in enumerate(bic, 1) if math.isfinite(v)]
    return {**_bic_frame(k, bool(rows), width, ink), "data": {"values": rows}}


@lru_cache(maxsize=64)
def _bic_frame(k: int | None, has_rows: bool, width: int, ink: str) -> Spec:
    """Make what the BIC curves of thousands of neurons have in common."""
    axis = alt.Axis(format=",d", tickCount=4, labels=has_rows, grid=has_rows)
    # Room above for the name of the K that was chosen.
    scale = alt.Scale(zero=False, padding=18) if has_rows else alt.Scale(domain=[0, 1])
    base = alt.Chart(_data([])).encode(
        alt.X("k:O", title="clusters K", axis=alt.Axis(labelAngle=0)),
        alt.Y("bic:Q", title="BIC", axis=axis, scale=scale),
    )
    chosen = base.transform_filter(f"datum.k === {-1 if k is None else k}")
    # Beside the axis the name would cover its numbers.
    name = (
        chosen.mark_text(dy=-12, color=ink, fontWeight="bold", align="left", dx=8)
        if k == 1
        else chosen.mark_text(dy=-12, color=ink, fontWeight="bold")
    )
    chart = alt.layer(
        base.mark_line(color=ink, opacity=0.5, strokeWidth=1.5),
        base.mark_point(filled=True, color=ink, size=30, opacity=1),
        chosen.mark_point(filled=True, color=PALETTE[0], size=130, opacity=1),
        name.encode(text=alt.value(f"K = {k}")),
    ).properties(height=160)
    said = "." if k is None else f"; K = {k} was chosen."
    return _finished(
        chart, f"Bayesian information criterion by number of clusters{said}", width, ink
    )


def score_by_layer(run: Run, *, width: int = 480, ink: str = _INK) -> Spec:
    """Show the distribution of the scores of each layer: the 5, 25, 50, 75 and 95 % points.

    Where the run has few neurons, each is a mark of its own as well.

    Args:
        run: The run; neurons without a score are left out, and a layer of nothing else is empty.
        width: Width in pixels, with the names of the layers.
        ink: Colour of text and axes.

    Returns:
        A specification, of a size that grows with the layers, not with the neurons.
    """
    rows = _percentiles([run], [run.name])
    scored = sum(row["n"] for row in rows)
    colour = alt.value(PALETTE[0])
    layers = _ranges(rows, colour, _scale(), ink)
    if scored <= _SINGLE:
        layers.insert(0, _single(run, rows, ink))
    chart = alt.layer(*layers, data=_data(rows)).properties(
        height=len(rows) * (_STEP if len(rows) <= _MANY_ROWS else _LOW_STEP), autosize=_fit()
    )
    return _finished(
        chart,
        f"Scores of {counted(scored, 'neuron')} in {counted(len(rows), 'layer')}: the median, the "
        "middle half and the middle 90 % of each layer.",
        width,
        ink,
    )


def paired_distributions(
    runs: Sequence[Run], names: Sequence[str], *, width: int = 480, ink: str = _INK
) -> Spec:
    """Show the distribution of the scores of each layer in several runs, one below the other.

    Args:
        runs: The runs; the place of a layer that a run does not have is left free.
        names: What to call each run, all different.
        width: Width in pixels, with the names of the layers.
        ink: Colour of text and axes.

    Returns:
        A specification; its axis ends where the scores do.
    """
    rows = _percentiles(runs, names)
    layers = len({row["layer"] for row in rows})
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    legend = alt.Legend(
        title=None, orient="top", columns=1, symbolType="stroke", symbolStrokeWidth=7,
        labelLimit=max(100, width - 210),
    )  # fmt: skip
    order = alt.Scale(domain=list(names))
    colour = alt.Color("run:N", scale=alt.Scale(domain=list(names), range=colours), legend=legend)
    low, high = _fitted(row[level] for row in rows if row["n"] for level in ("p5", "p95"))
    charts = [
        chart.encode(yOffset=alt.YOffset("run:N", scale=order))
        for chart in _ranges(rows, colour, _scale(low, high), ink)
    ]
    chart = alt.layer(*charts, data=_data(rows)).properties(
        height=max(len(rows), 1) * _LOW_STEP, autosize=_fit()
    )
    return _finished(
        chart,
        f"Scores in {counted(layers, 'layer')} of {counted(len(names), 'run')}: the median, the "
        "middle half and the middle 90 % of each.",
        width,
        ink,
    )


def paired_scores(
    a: Sequence[float],
    b: Sequence[float],
    names: Sequence[str],
    labels: tuple[str, str] = ("A", "B"),
    *,
    size: int = 300,
    ink: str = _INK,
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
        A specification; both axes are the same and end where the scores do.
    """
    rows = [
        {"a": round(x, 4), "b": round(y, 4), "neuron": name}
        for x, y, name in zip(a, b, names, strict=True)
    ]
    low, high = _fitted([*a, *b])
    few = len(rows) <= _POINTS

    axis = alt.Axis(titleLimit=size, tickCount=5)
    base = alt.Chart().encode(
        alt.X("a:Q", scale=_scale(low, high), title=f"score in {labels[0]}", axis=axis),
        alt.Y("b:Q", scale=_scale(low, high), title=f"score in {labels[1]}", axis=axis),
    )
    points = base.mark_point(
        filled=True, color=PALETTE[0], size=36 if few else 16, opacity=0.6 if few else 0.35
    )
    equal = base.mark_line(color=ink, opacity=0.4, strokeDash=[4, 4], strokeWidth=1).properties(
        data=_data([{"a": low, "b": low}, {"a": high, "b": high}])
    )
    chart = alt.layer(equal, points, data=_data(rows)).properties(height=size)
    return _finished(chart, f"Scores of {counted(len(rows), 'neuron')} in two runs.", size, ink)


def _percentiles(runs: Sequence[Run], names: Sequence[str]) -> list[Spec]:
    """Sum the scores of each layer of each run up."""
    by_layer: list[dict[str, list[float]]] = []
    for run in runs:
        found = {
            layer.name: [run.neurons[position].score for position in layer.positions]
            for layer in run.layers
        }
        by_layer.append({name: [s for s in of if s is not None] for name, of in found.items()})
    rows: list[Spec] = []
    for layer in dict.fromkeys(name for scores in by_layer for name in scores):
        for name, scores in zip(names, by_layer, strict=True):
            known = scores.get(layer, [])
            row: Spec = {"layer": layer, "run": name, "n": len(known)}
            if known:
                points = np.percentile(known, list(_LEVELS.values())).round(4).tolist()
                row |= dict(zip(_LEVELS, points, strict=True))
            rows.append(row)
    return rows


def _ranges(
    rows: Sequence[Spec], colour: alt.Color | Any, scale: alt.Scale, ink: str
) -> list[alt.Chart]:
    """Draw a thin line, a thick line and a dot for each row, and how many neurons it has."""
    base = alt.Chart().encode(_layers(rows))
    # Else marks would be drawn at 0 where a layer has no score.
    known = base.transform_filter("datum.n > 0").encode(color=colour)

    def at(level: str) -> alt.X:
        return alt.X(f"{level}:Q", scale=scale, title="score", axis=alt.Axis(tickCount=6))

    return [
        known.mark_rule(strokeWidth=1.5, opacity=0.7).encode(at("p5"), alt.X2("p95")),
        known.mark_rule(strokeWidth=7, strokeCap="round", opacity=0.5).encode(
            at("p25"), alt.X2("p75")
        ),
        known.mark_point(filled=True, size=48, opacity=1).encode(at("p50"), color=alt.value(ink)),
        base.mark_text(align="left", dx=10, color=ink, opacity=0.75).encode(
            x=alt.value("width"), text=alt.Text("n:Q", format=",")
        ),
    ]


def _single(run: Run, rows: Sequence[Spec], ink: str) -> alt.Chart:
    """Draw each neuron as a stroke."""
    values = [
        {"layer": neuron.layer, "score": round(neuron.score, 4)}
        for neuron in run.neurons
        if neuron.score is not None
    ]
    strokes: alt.Chart = alt.Chart(_data(values)).mark_tick(
        color=ink, opacity=0.35, thickness=1, size=14
    )
    chart: alt.Chart = strokes.encode(_layers(rows), alt.X("score:Q", scale=_scale()))
    return chart


def _layers(rows: Sequence[Spec]) -> alt.Y:
    """Make an axis of layers, in their order."""
    names = list(dict.fromkeys(row["layer"] for row in rows))
    # The end of a long name tells it from others.
    axis = alt.Axis(grid=False, labelExpr=f"truncate(datum.label, {_LONGEST}, 'left')")
    return alt.Y("layer:N", scale=alt.Scale(domain=names), title=None, axis=axis)


def _frequency(neurons: int) -> alt.Y:
    """Make an axis of whole numbers of neurons."""
    ticks = {"tickCount": 4, "tickMinStep": 1} if neurons else {"values": [0, 1]}
    scale = alt.Scale() if neurons else alt.Scale(domain=[0, 1])
    return alt.Y("n:Q", title="neurons", scale=scale, axis=alt.Axis(format=",d", **ticks))


def _fitted(scores: Iterable[float]) -> tuple[float, float]:
    """Find twentieths between which all scores are; [0, 1] where there is none."""
    known = list(scores)
    if not known:
        return 0.0, 1.0
    low = math.floor(min(known) * _BINS) / _BINS
    high = math.ceil(max(known) * _BINS) / _BINS
    return low, high if high > low else low + 1 / _BINS


def _scale(low: float = 0.0, high: float = 1.0) -> alt.Scale:
    """Make the scale of scores."""
    return alt.Scale(domain=[low, high], nice=False)


def _fit() -> alt.AutoSizeParams:
    """Let the names of layers have their part of the width; the height is that of the rows."""
    return alt.AutoSizeParams(type="fit-x", contains="padding")


def _data(rows: Sequence[Spec]) -> alt.InlineData:
    return alt.InlineData(values=list(rows))


def _finished(chart: alt.TopLevelMixin, description: str, width: int, ink: str) -> Spec:
    """Give a chart the style of all, and a description for those who cannot see it."""
    title = {"titleColor": ink, "titleFontSize": 12, "titleFontWeight": "normal"}
    label = {"labelColor": ink, "labelFontSize": 11}
    styled = chart.properties(width=width, description=description).configure(
        background="transparent",
        aria=False,
        font=_FONT,
        view={"stroke": None},
        axis={
            "domain": False,
            "ticks": False,
            "labelOpacity": 0.8,
            "labelFlush": False,
            "labelPadding": 6,
            "labelLimit": 220,
            "titlePadding": 8,
            "gridColor": ink,
            "gridOpacity": 0.12,
            **label,
            **title,
        },
        legend={**label, **title},
        text={"color": ink, "fontSize": 11},
    )
    # Checked against the schema, a chart takes ten times as long; the tests check each.
    with alt.theme.enable("none"), alt.data_transformers.enable(consolidate_datasets=False):
        spec: Spec = styled.to_dict(validate=False)
    return spec
