import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest

from polylight.inspect.palette import PALETTE as FIRST
from polylight.report import charts
from polylight.report.content import LayerSummary, NeuronSummary, Run

SVG = "{http://www.w3.org/2000/svg}"


def make_run(scores, name="run"):
    """A run of layers, each with its scores."""
    neurons, layers = [], []
    for layer, values in scores.items():
        positions = range(len(neurons), len(neurons) + len(values))
        layers.append(LayerSummary(name=layer, slug="layer", positions=positions))
        neurons += [
            NeuronSummary(
                position=position,
                slug="neuron",
                values={"neuron": f"{layer}:{position}", "layer": layer, "score": score},
                median_activation=None,
                similar=(),
            )
            for position, score in zip(positions, values, strict=True)
        ]
    return Run(
        name=name,
        path=Path(name),
        state="unknown",
        manifest=None,
        unreadable=[],
        layers=layers,
        neurons=neurons,
    )


def draw(spec):
    """What is drawn: the marks of each kind as their descriptions, and all text."""
    json.dumps(spec, allow_nan=False)
    # Charts are made without this check, which takes longer than all else of them.
    alt.Chart.from_dict(spec, validate=True)
    assert spec["description"].endswith(".")
    svg = charts.to_svg(spec)
    tree = ElementTree.fromstring(svg)
    marks = {}
    for group in tree.iter(f"{SVG}g"):
        role = re.match(r"mark-(\w+) role-mark", group.get("class", ""))
        if role:
            marks.setdefault(role[1], []).extend(child for child in group if child.tag != f"{SVG}g")
    return marks, [text.text for text in tree.iter(f"{SVG}text")], svg


def numbers(mark):
    """The numbers of an SVG path."""
    return [float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", mark.get("d"))]


def test_the_palette_begins_as_that_of_the_contact_sheet():
    assert charts.PALETTE[:7] == FIRST
    assert len(set(charts.PALETTE)) == 8


def test_scores_fall_into_twenty_bins():
    scores = [*np.random.default_rng(0).random(200).tolist(), 0.0, 1.0, 0.95, 0.05]
    expected = np.histogram(scores, np.arange(21) / 20)[0]
    spec = charts.score_histogram(scores, width=400)
    found = {round(20 * value["low"]): value["n"] for value in spec["data"]["values"]}
    assert [found.get(i, 0) for i in range(20)] == expected.tolist()
    marks, _, _ = draw(spec)
    bars = [numbers(mark) for mark in marks["rect"]]
    assert len(bars) == np.count_nonzero(expected)
    # "M x,y h width v height": heights are in proportion.
    heights = np.array([bar[3] for bar in bars])
    assert heights / heights.max() == pytest.approx(expected[expected > 0] / expected.max())
    assert "204 neurons" in spec["description"]


def test_numbers_of_clusters_are_counted():
    spec = charts.k_histogram([1, 3, 3, 1, 1, 5])
    assert spec["data"]["values"] == [{"k": 1, "n": 3}, {"k": 3, "n": 2}, {"k": 5, "n": 1}]
    marks, text, _ = draw(spec)
    assert len(marks["rect"]) == 3
    # There is a place for every K, also for those that no neuron has.
    assert [t for t in text if t in "12345"][:5] == ["1", "2", "3", "4", "5"]


def test_the_chosen_k_is_marked_on_the_curve():
    bic = [100.0, 250.5, 240.0, math.nan, -math.inf]
    marks, text, svg = draw(charts.bic_curve(bic, 2, width=300))
    (line,) = marks["line"]
    x, y = np.array(numbers(line)).reshape(-1, 2).T
    assert np.diff(x) == pytest.approx([100, 100], abs=0.01)
    # Downwards, and in proportion.
    assert (y[0] - y[1]) / (y[2] - y[1]) == pytest.approx(150.5 / 10.5, rel=1e-4)
    assert len(marks["symbol"]) == 3 + 1
    assert text.count("K = 2") == 1
    assert charts.PALETTE[0] in svg
    marks, text, _ = draw(charts.bic_curve(bic[:1], None))
    assert len(marks["symbol"]) == 1
    assert not [t for t in text if t.startswith("K =")]


def test_charts_of_nothing_can_be_drawn():
    for spec in (
        charts.score_histogram([]),
        charts.k_histogram([]),
        charts.bic_curve([], None),
        charts.score_by_layer(make_run({"a": [None, None]})),
        charts.paired_scores([], [], []),
        charts.paired_distributions([make_run({}), make_run({"a": [None]})], ["x", "y"]),
    ):
        draw(spec)


def test_layers_show_their_percentiles():
    rng = np.random.default_rng(0)
    scores = {f"blocks.{i}": rng.random(n).tolist() for i, n in enumerate([1, 7, 300, 300])}
    scores["dead"] = [None]
    spec = charts.score_by_layer(make_run(scores), width=500)
    rows = {row["layer"]: row for row in spec["data"]["values"]}
    for layer, values in scores.items():
        assert rows[layer]["n"] == sum(value is not None for value in values)
        if layer != "dead":
            found = [rows[layer][level] for level in ("p5", "p25", "p50", "p75", "p95")]
            assert found == pytest.approx(
                np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]), abs=1e-4
            )
    marks, text, _ = draw(spec)
    # A thin and a thick line, and a dot for each layer with a score.
    assert len(marks["rule"]) == 2 * 4
    assert len(marks["symbol"]) == 4
    assert "rect" not in marks
    assert text.count("300") == 2
    assert text.count("dead") == 1
    assert "608 neurons in 5 layers" in spec["description"]


def test_few_neurons_are_drawn_one_by_one():
    scores = {"a": [0.0, 0.5, None, 1.0], "b": [0.25]}
    marks, _, _ = draw(charts.score_by_layer(make_run(scores), width=500))
    at = sorted({round(numbers(mark)[0]) for mark in marks["rect"]})
    assert len(marks["rect"]) == 4
    assert np.diff(at) / (at[-1] - at[0]) == pytest.approx([0.25, 0.25, 0.5], abs=0.01)


def test_the_chart_of_layers_stays_small_and_draws_every_one():
    rng = np.random.default_rng(0)
    scores = {f"stage{i}.conv": rng.beta(2, 5, 100).tolist() for i in range(60)}
    spec = charts.score_by_layer(make_run(scores))
    assert len(json.dumps(spec)) < 24_000
    marks, text, _ = draw(spec)
    assert len(marks["symbol"]) == 60
    assert sum(t.startswith("stage") for t in text) == 60


def test_of_long_layer_names_the_end_is_shown():
    name = "features." * 5 + "conv2"
    _, text, _ = draw(charts.score_by_layer(make_run({name: [0.5]})))
    (label,) = [t for t in text if t.endswith("conv2")]
    assert len(label) == 32


def test_runs_are_compared_layer_by_layer():
    first = make_run({"a": [0.1, 0.2, 0.3], "b": [0.5]})
    second = make_run({"b": [0.9, 0.8], "c": [None]})
    spec = charts.paired_distributions([first, second], ["seed 0", "seed 1"], width=400)
    assert [
        (row["layer"], row["run"], row["n"], row.get("p50")) for row in spec["data"]["values"]
    ] == [
        ("a", "seed 0", 3, 0.2),
        ("a", "seed 1", 0, None),
        ("b", "seed 0", 1, 0.5),
        ("b", "seed 1", 2, 0.85),
        ("c", "seed 0", 0, None),
        ("c", "seed 1", 0, None),
    ]
    marks, text, svg = draw(spec)
    assert len(marks["symbol"]) == 3
    assert text.count("seed 0") == text.count("seed 1") == 1
    assert charts.PALETTE[0] in svg
    assert charts.PALETTE[1] in svg


def test_scores_of_two_runs_are_points_about_a_line():
    spec = charts.paired_scores(
        [0.0, 0.25, 1.0], [1.0, 0.5, 0.0], ["a:0", "a:1", "a:2"], ("one", "two"), size=200
    )
    marks, text, _ = draw(spec)
    place = [
        tuple(float(n) for n in re.findall(r"[\d.]+", mark.get("transform")))
        for mark in marks["symbol"]
    ]
    assert place == [(0, 0), (50, 100), (200, 200)]
    assert numbers(*marks["line"]) == [0, 200, 200, 0]
    assert {"score in one", "score in two"} <= set(text)


def test_axes_of_two_runs_end_where_the_scores_do():
    spec = charts.paired_scores([0.12, 0.31], [0.2, 0.28], ["a:0", "a:1"])
    marks, text, _ = draw(spec)
    place = [
        tuple(float(n) for n in re.findall(r"[\d.]+", mark.get("transform")))
        for mark in marks["symbol"]
    ]
    # From 0.1 to 0.35 on both axes, 300 pixels each.
    scores = np.array([(0.12, 0.2), (0.31, 0.28)])
    expected = 300 * np.abs(scores - (0.1, 0.35)) / 0.25
    np.testing.assert_allclose(place, expected, atol=0.01)
    assert "1.0" not in text
    runs = [make_run({"a": [0.1, 0.2]}), make_run({"a": [0.3]})]
    _, text, _ = draw(charts.paired_distributions(runs, ["x", "y"]))
    assert "0.30" in text
    assert not {"0.4", "0.40", "1.0"} & set(text)


def test_a_chart_drawn_again_shows_its_own_data():
    first, second = (charts.bic_curve(values, 2) for values in ([1.0, 5.0], [4.0, 5.0, 3.0]))
    assert charts.to_svg(first) == charts.to_svg(charts.bic_curve([1.0, 5.0], 2))
    assert charts.to_svg(first) != charts.to_svg(second)
    assert len(draw(second)[0]["symbol"]) == 3 + 1


def test_charts_hold_nothing_that_could_meet_another_on_a_page():
    run = make_run({"a": [0.1, 0.2, None], "b": [0.5]})
    for spec in (
        charts.bic_curve([1.0, 2.0], 1),
        charts.score_by_layer(run),
        charts.score_histogram([0.5]),
        charts.k_histogram([1, 2]),
        charts.paired_scores([0.1], [0.2], ["a:0"]),
        charts.paired_distributions([run, run], ["x", "y"]),
    ):
        svg = charts.to_svg(spec)
        assert " id=" not in svg
        assert "<style" not in svg
        assert "white" not in svg


def test_names_are_data():
    nasty = '<script>alert("x")</script>'
    run = make_run({nasty: [0.5]})
    svg = charts.to_svg(charts.score_by_layer(run))
    assert "<script" not in svg
    pair = charts.paired_scores([0.5], [0.5], [nasty], (nasty, "b"))
    assert "<script" not in charts.to_svg(pair)


def test_ink_is_the_colour_of_text():
    svg = charts.to_svg(charts.bic_curve([1.0, 2.0], 2, ink="#123456"))
    assert "currentColor" not in svg
    assert "#123456" in svg
    page = charts.bic_curve([1.0, 2.0], 2)
    assert "currentColor" in charts.to_svg(page)
    assert charts.bic_curve([1.0, 2.0], 2, width=140)["width"] == 140
