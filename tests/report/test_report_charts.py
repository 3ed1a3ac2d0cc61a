import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

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
        charts.similarity_matrix(np.zeros((0, 0)), [], []),
        charts.similarity_matrix(np.full((2, 2), np.nan), [2], [0]),
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


def cells(marks):
    """The cells of a matrix: left, top, width, height and colour."""
    found = [(*numbers(mark)[:4], mark.get("fill")) for mark in marks["rect"]]
    return [cell for cell in found if cell[0] >= 0 and cell[1] >= 0]


def test_a_matrix_shows_every_cosine_with_gaps_between_clusters():
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.2, 1, (6, 6))
    similarity[2, 3] = np.nan
    spec = charts.similarity_matrix(similarity, [3, 2, 1], [1, 2, 0], size=300)
    values = spec["layer"][0]["data"]["values"]
    assert values[2 * 6 + 3] == ""
    known = ~np.isnan(similarity.ravel())
    assert np.array(values)[known].astype(int).tolist() == [
        round(100 * v) for v in similarity.ravel()[known]
    ]
    marks, text, svg = draw(spec)
    found = cells(marks)
    assert len(found) == 35
    lefts = sorted({round(cell[0], 2) for cell in found})
    side = found[0][2]
    gaps = np.diff(lefts) - side
    assert (gaps > 1).tolist() == [False, False, True, False, True]
    assert lefts[-1] + side == pytest.approx(300, abs=0.1)
    # The top left cell is the first; equal cosines look alike, and brighter ones are larger.
    first = next(cell for cell in found if cell[:2] == (0, 0))
    assert first[4] == _viridis(values[0] / 100)
    assert [t for t in text if t in ("1", "2", "-")] == ["1", "2", "-"]
    assert charts.PALETTE[1] in svg


def _viridis(value):
    spec = {
        "data": {"values": [{"v": value}]},
        "mark": "rect",
        "encoding": {
            "color": {
                "field": "v",
                "type": "quantitative",
                "scale": {"scheme": "viridis", "domain": [0, 1]},
            }
        },
    }
    return re.search(r'fill="(rgb[^"]+|#[0-9a-f]{6})"', charts.to_svg(spec))[1]


def test_images_by_the_hundred_share_cells_within_their_clusters():
    sizes = [200, 101, 3]
    label = np.repeat([0, 1, 2], sizes)
    similarity = np.where(label[:, None] == label, 0.75, 0.25)
    similarity[:3, :3] = [[0.1, 0.2, 0.9], [0.3, 0.4, 0.9], [0.5, 0.6, 0.9]]
    spec = charts.similarity_matrix(similarity, sizes, range(1, len(sizes) + 1))
    values = spec["layer"][0]["data"]["values"]
    # Of three images each: 67 + 34 + 1 cells a side.
    assert len(values) == 102**2
    assert values[0] == round(100 * similarity[:3, :3].mean())
    assert values[66] == 75
    assert values[67] == 25
    assert values[-1] == 75


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
    assert page["width"] == "container"
    assert "currentColor" in charts.to_svg(page)
    assert 'width="3' in charts.to_svg({**page, "width": 300})
