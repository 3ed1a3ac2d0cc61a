import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score

from benchmarks.validation import KEPT, kept
from polylight.planted.outcome import Outcome
from polylight.planted.plot import plot_validation
from polylight.planted.summary import as_json, check_targets, summarise
from polylight.planted.table import markdown, print_tables
from tests.planted.outcomes import many, outcome


@pytest.fixture(scope="module")
def outcomes():
    return many(np.random.default_rng(0))


def document(outcomes, targets=None, *, fewer=()):
    scopes = summarise(outcomes, resamples=20)
    return as_json(
        {
            "scopes": scopes,
            "targets": check_targets(scopes, targets or {}),
            "by_image_count": [s for s in summarise(fewer, resamples=20) if s.subject is None],
            "reliability": {"embedders": {}, "calibration": None, "photos": {}},
        }
    )


def printed(found):
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_tables(found, console)
    return console.file.getvalue()


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_tables_fit_80_columns_and_name_what_is_missed(outcomes):
    base = many(np.random.default_rng(2), condition="baseline", gain=0.0)
    base.append(outcome(components=("a:99",), condition="baseline", status="dead", scores={}))
    targets = {"auroc": 0.8, "controls_difference": 0.001, "seeds_icc": 0.9}
    found = document(outcomes + base, targets)
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    ours, other = (s["scores"]["polylight"] for s in found["scopes"] if not s["layer"])
    auroc = ours["auroc"]
    interval = f"{auroc['low']:.3f} to {auroc['high']:.3f}"
    cells = f"{auroc['value']:.3f} {interval} {auroc['n']} >= 0.8, met"
    assert " ".join(line_of(text, "AUROC, one feature").split()).endswith(cells)
    assert line_of(text, "farthest control").rstrip().endswith("within 0.001, missed")
    assert f"{other['auroc']['value']:.3f}" in line_of(text, "baseline")
    assert "polylight: no seeds_icc: fewer than two single channels have scores of several" in text
    assert "copies, 4 near_duplicates; unscored: 1 dead" in " ".join(text.split())
    layers = [line for line in text.splitlines() if line.startswith("net ")]
    assert [line.split()[1] for line in layers] == ["a", "b"]


def test_names_are_printed_as_they_are(outcomes):
    rows = [dataclasses.replace(o, condition="[r]", subject="[bold]") for o in outcomes]
    text = printed(document(rows))
    assert line_of(text, "[r]").startswith("[r]")
    assert "[bold]" in text


def test_fewer_images_are_a_table_that_ends_with_all_of_them(outcomes):
    fewer = [dataclasses.replace(o, condition="first 3") for o in outcomes]
    assert "first" not in markdown(document(outcomes))
    assert "another seed" not in markdown(document(outcomes))
    lines = markdown(document(outcomes, fewer=fewer)).splitlines()
    three, everything = (
        next(line for line in lines if line.startswith(f"| {name} |"))
        for name in ("first 3", "all")
    )
    assert three.split("|")[2:] == everything.split("|")[2:]


def test_what_comes_out_the_same_again_is_a_table(outcomes):
    found = document(outcomes + many(np.random.default_rng(5), seed=7))
    found["reliability"] = {
        "embedders": {"net": {"second": "other", "neurons": 9, "spearman": 0.5, "icc": None}},
        "calibration": {"neurons": 3, "seeds": 20, "coverage": 0.945, "width": 0.13},
        "photos": {"net": {"photos": 200, "percentile": {"a:0": 1.0}, "above_best": 0.5}},
    }
    text = markdown(found)
    for row in (
        "| net, same images embedded by other | 9 | Spearman 0.500, ICC - |",
        "| intervals, 20 seeds | 3 | 94.5%, 0.13 wide, hold the others' mean |",
        "| net, single channels against 200 photos | 1 | 50.0% driven harder than by the best",
    ):
        assert row in text
    seeds = found["scopes"][0]["scores"]["polylight"]
    values = [f"{seeds[f'seeds_{name}']['value']:.3f}" for name in ("spearman", "icc")]
    again = "| single channels, another seed | 24 | Spearman {}, ICC {} |"
    assert again.format(*values) in text


def test_the_published_tables_are_those_of_the_published_document():
    text = kept()
    found = json.loads((KEPT / "validation.json").read_text())
    for target in found["targets"]:
        if target["condition"] == "polylight":
            assert f"| {target['value']:.3f} |" in text
    assert (
        "| Spearman, screened components | 0.899 | 0.882 to 0.914 | 118 | >= 0.9, missed |" in text
    )
    assert "| efficientnet_lite2 | blocks.4 | 37 | 0.950 [0.850 to 1.000] |" in text
    assert text.count("\n\n") == 5


def test_the_published_measures_are_those_of_the_published_scores():
    found = json.loads((KEPT / "validation.json").read_text())
    names = ("polylight", "paper", "vendi")
    outcomes = []
    for o in found["outcomes"]:
        if o["condition"] in ("polylight", "pooled"):
            known = {name: value for name, value in o["scores"].items() if name in names}
            given = o | {"scores": known, "components": tuple(o["components"])}
            outcomes.append(Outcome(**given, label=[], component=[], activation=[]))
    published = {(s["condition"], s["subject"], s["layer"]): s["scores"] for s in found["scopes"]}
    compared = 0
    for scope in summarise(outcomes, resamples=1):
        for name, measures in published[scope.condition, scope.subject, scope.layer].items():
            for measure, estimate in measures.items() if name in names else ():
                value = scope.scores[name][measure].value
                # Scores are published with six digits.
                expected = estimate["value"]
                if expected is not None:
                    expected = pytest.approx(expected, abs=1e-4)
                assert value == expected, (scope.condition, scope.layer, name, measure)
                compared += 1
    assert compared > 500


def test_the_figure_is_drawn_twice_alike(outcomes, tmp_path):
    rows = outcomes + many(np.random.default_rng(2), condition="baseline", gain=0.0)
    png, svg = plot_validation(rows, tmp_path / "proof.pdf")
    assert (png, svg) == (tmp_path / "proof.png", tmp_path / "proof.svg")
    pixels = np.array(Image.open(png).convert("RGB"))
    assert pixels.shape == (640, 1440, 3)
    colours = {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (255, 255, 255)} <= colours
    again = plot_validation(rows, tmp_path / "again.png")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.png",
        "again.svg",
        "proof.png",
        "proof.svg",
    ]


def labels_of(outcomes, tmp_path, monkeypatch):
    """What the legend of the ROC curves says."""
    from matplotlib.axes import Axes

    said = []
    monkeypatch.setattr(
        Axes, "legend", lambda axes, **_: said.append(axes.get_legend_handles_labels()[1])
    )
    plot_validation(outcomes, tmp_path / "figure")
    return said[1]


def test_the_figure_says_the_area_under_its_curves(outcomes, tmp_path, monkeypatch):
    m, scores = zip(*((o.m, o.scores["polylight"]) for o in outcomes), strict=True)
    area = roc_auc_score(np.array(m) > 1, scores)
    assert labels_of(outcomes, tmp_path, monkeypatch) == [f"polylight: AUROC {area:.3f}"]


@pytest.mark.parametrize(("kind", "lacks"), [("single", "more features"), ("max", "one feature")])
def test_the_figure_says_what_it_cannot_draw(outcomes, tmp_path, monkeypatch, kind, lacks):
    rows = [o for o in outcomes if o.kind == kind]
    assert labels_of(rows, tmp_path, monkeypatch) == [f"polylight: no scores of {lacks}"]
