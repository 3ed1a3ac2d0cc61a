import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats
from sklearn.metrics import adjusted_rand_score, roc_auc_score, roc_curve

from polylight.errors import InputError
from polylight.planted import Outcome, draw, plot, print_summary, summarise

DRAWS = 200
PARTS = {"single": 1, "min": 2, "copies": 2, "twins": 2}


def outcome(kind="single", score=0.1, *, components=("a:0",), **changes):
    m = len(components) if kind in ("max", "logits") else 1
    made = Outcome(
        subject="net",
        recipe="polylight",
        layer="a",
        neuron=components[0] if kind == "single" else f"{kind}({','.join(components)})",
        kind=kind,
        m=m,
        components=tuple(components),
        screened=True,
        status="ok",
        scores={"polylight": score},
        labels=[0, 0, -1],
        winner=[0, 0, 0],
        activation=[1.0, 2.0, 0.1],
        k=1,
        score_low=None,
        score_high=None,
        seed=0,
    )
    return dataclasses.replace(made, **changes)


def many(rng, *, layers=("a", "b"), recipe="polylight", gain=0.15, seed=0):
    """Singles, composites and controls with noisy scores, on scales that differ by layer."""
    outcomes = []
    for number, layer in enumerate(layers):
        singles = [f"{layer}:{c}" for c in range(12)]
        asked = [("single", (component,)) for component in singles]
        asked += [("max", tuple(singles[i : i + m])) for m in (2, 3, 4) for i in range(8)]
        asked += [(kind, (singles[i], singles[i + 2])) for kind in ("min", "twins") for i in (0, 5)]
        asked += [("copies", (component, component)) for component in singles[:3]]
        for kind, components in asked:
            m = len(components) if kind == "max" else 1
            score = rng.normal(0.2 + 0.1 * number + gain * (m - 1), 0.1)
            labels = rng.integers(-1, m, 12)
            changes = {
                "layer": layer,
                "recipe": recipe,
                "seed": seed,
                "screened": bool(rng.random() < 0.7),
                "scores": {"polylight": float(score), "paper": float(round(rng.random(), 1))},
                "labels": labels.tolist(),
                "winner": rng.integers(0, m, 12).tolist(),
                "activation": [1.0] * 12,
                "k": int(rng.integers(1, 5)),
                "score_low": float(score) - 0.1,
                "score_high": float(score) + 0.2,
                "similarity": float(rng.random()) if len(components) == 2 else None,
            }
            outcomes.append(outcome(kind, components=components, **changes))
    return outcomes


@pytest.fixture
def outcomes():
    return many(np.random.default_rng(0))


def of(outcomes, kinds, name="polylight", **wanted):
    chosen = [o for o in outcomes if o.kind in kinds]
    chosen = [o for o in chosen if all(getattr(o, k) == v for k, v in wanted.items())]
    return np.array([o.m for o in chosen]), np.array([o.scores[name] for o in chosen])


@pytest.mark.parametrize("name", ["polylight", "paper"])
def test_separation_is_sklearns_and_scipys(outcomes, name):
    overall, layer_a, layer_b = summarise(outcomes, {}, draws=DRAWS).scopes
    for scope, wanted in ((overall, {}), (layer_a, {"layer": "a"}), (layer_b, {"layer": "b"})):
        found = scope.scores[name]
        for separation, kinds, more in (
            (found.every, ("single", "max", "min", "copies", "twins"), {}),
            (found.singles, ("single", "max"), {}),
            (found.screened, ("single", "max"), {"screened": True}),
        ):
            m, scores = of(outcomes, kinds, name, **wanted, **more)
            assert separation.auroc.value == pytest.approx(roc_auc_score(m > 1, scores))
            expected = stats.spearmanr(m, scores).statistic
            assert separation.spearman.value == pytest.approx(expected)
            right = stats.spearmanr(np.sort(m), np.arange(len(m))).statistic
            assert separation.spearman_most.value == pytest.approx(right)
            assert separation.auroc.n == separation.spearman.n == len(m)


def test_within_layers_is_the_mean_of_the_layers():
    uneven = many(np.random.default_rng(1))
    uneven = [o for o in uneven if o.layer == "a" or o.m < 4]
    overall, *layers = summarise(uneven, {}, draws=DRAWS).scopes
    found = overall.scores["polylight"].singles
    auroc = [s.scores["polylight"].singles.auroc.value for s in layers]
    assert found.auroc_within.value == pytest.approx(np.average(auroc, weights=[12 * 24, 12 * 16]))
    spearman = [s.scores["polylight"].singles.spearman.value for s in layers]
    assert found.spearman_within.value == pytest.approx(np.average(spearman, weights=[36, 28]))
    assert found.auroc_within.value > found.auroc.value
    assert layers[0].scores["polylight"].singles.auroc_within.value == auroc[0]


def test_intervals_are_those_of_a_bootstrap_within_layer_and_m(outcomes):
    overall = summarise(outcomes, {}, draws=2000).scopes[0]
    found = overall.scores["polylight"].singles
    strata = [
        of(outcomes, ("single", "max"), layer=layer, m=m) for layer in "ab" for m in (1, 2, 3, 4)
    ]
    rng, aurocs, spearmans = np.random.default_rng(9), [], []
    for _ in range(800):
        drawn = [(m, rng.choice(s, len(s))) for m, s in strata]
        m, scores = (np.concatenate(column) for column in zip(*drawn, strict=True))
        aurocs.append(roc_auc_score(m > 1, scores))
        spearmans.append(stats.spearmanr(m, scores).statistic)
    for estimate, draws in ((found.auroc, aurocs), (found.spearman, spearmans)):
        expected = np.quantile(draws, [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.015)


def test_composites_are_compared_with_their_own_components():
    own = [outcome(score=s, components=(f"a:{c}",)) for c, s in enumerate([0.1, 0.3, 0.5])]
    composites = [
        outcome("max", 0.6, components=("a:0", "a:1")),
        outcome("max", 0.4, components=("a:0", "a:2")),
        outcome("max", 0.3, components=("a:0", "a:1", "a:2")),
        outcome("max", 0.3, components=("a:0", "a:9")),
    ]
    found = summarise(own + composites, {}, draws=DRAWS).scopes[0].scores["polylight"]
    # The third is equal to the mean of its components; the fourth has a component without a score.
    assert (found.above_mean.value, found.above_mean.n) == (pytest.approx(2 / 3), 3)
    assert (found.above_highest.value, found.above_highest.n) == (pytest.approx(1 / 3), 3)
    expected = stats.binomtest(2, 3).proportion_ci(method="wilson")
    assert (found.above_mean.low, found.above_mean.high) == pytest.approx(tuple(expected))


def test_controls_are_compared_with_singles_and_with_their_own_components():
    own = [outcome(score=s, components=(f"a:{c}",)) for c, s in enumerate([0.1, 0.3, 0.5])]
    controls = [
        outcome("min", 0.2, components=("a:0", "a:1")),
        outcome("min", 0.4, components=("a:1", "a:2")),
        outcome("copies", 0.35, components=("a:1", "a:1")),
    ]
    found = summarise(own + controls, {}, draws=DRAWS).scopes[0].scores["polylight"].controls
    assert found.min.mean.value == pytest.approx(0.3)
    assert found.min.difference.value == pytest.approx(0.0)
    assert found.min.above_components.value == pytest.approx(0.0)
    assert found.copies.difference.value == pytest.approx(0.05)
    assert found.copies.above_components.value == pytest.approx(0.05)
    assert found.twins.mean.value is None
    assert found.twins.difference.reason == "no neuron of kind 'twins' has a score"


def test_images_and_clusters(outcomes):
    found = summarise(outcomes, {}, draws=DRAWS).scopes[0].images
    composites = [o for o in outcomes if o.kind == "max"]
    valid = [np.array(o.labels) >= 0 for o in composites]
    recall = [
        len(set(np.array(o.winner)[v].tolist())) / o.m
        for o, v in zip(composites, valid, strict=True)
    ]
    assert found.facet_recall.value == pytest.approx(np.mean(recall))
    assert found.facet_recall.n == len(composites)
    by_m = [
        np.mean([r for r, o in zip(recall, composites, strict=True) if o.m == m]) for m in (2, 3, 4)
    ]
    assert [found.facet_recall_by_m[m].value for m in (2, 3, 4)] == pytest.approx(by_m)
    made = [len(set(o.winner)) / o.m for o in composites]
    assert found.facets_made.value == pytest.approx(np.mean(made))
    assert np.mean(made) > np.mean(recall)
    plain = [o for o in outcomes if o.kind in ("single", "max")]
    share = [np.mean([label >= 0 for label in o.labels]) for o in plain]
    assert found.valid.value == pytest.approx(np.mean(share))
    assert found.valid.n == len(plain)
    agreement = [
        adjusted_rand_score(np.array(o.winner)[v], np.array(o.labels)[v])
        for o, v in zip(composites, valid, strict=True)
    ]
    assert found.adjusted_rand.value == pytest.approx(np.mean(agreement))
    plain = [o for o in outcomes if o.kind in ("single", "max")]
    assert found.k.error.value == pytest.approx(np.mean([o.k - o.m for o in plain]))
    assert found.k.exact.value == pytest.approx(np.mean([o.k == o.m for o in plain]))
    threes = [o for o in plain if o.m == 3]
    assert found.k_by_m[3].error.value == pytest.approx(np.mean([o.k - 3 for o in threes]))
    assert found.k_by_m[3].exact.n == len(threes)


def test_pairs_are_ordered_by_how_alike_their_parts_are(outcomes):
    found = summarise(outcomes, {}, draws=DRAWS).scopes[0].scores["polylight"]
    _, alike = of(outcomes, ("twins",))
    _, unlike = of(outcomes, ("max",), m=2)
    truth = np.r_[np.zeros(len(alike)), np.ones(len(unlike))]
    assert found.ordering.value == pytest.approx(roc_auc_score(truth, np.r_[alike, unlike]))
    pairs = [o for o in outcomes if o.kind == "twins" or (o.kind == "max" and o.m == 2)]
    expected = stats.spearmanr(
        [-o.similarity for o in pairs], [o.scores["polylight"] for o in pairs]
    ).statistic
    assert found.ordering_spearman.value == pytest.approx(expected)
    assert found.interval_width.value == pytest.approx(0.3)


def test_seeds_are_compared_and_the_lowest_counts(outcomes):
    again = many(np.random.default_rng(5), seed=7)
    both = summarise(again + outcomes, {}, draws=DRAWS).scopes[0].scores["polylight"]
    alone = summarise(outcomes, {}, draws=DRAWS).scopes[0].scores["polylight"]
    # Draws go by the order of neurons, which is the same.
    assert both.every == alone.every
    assert both.above_highest == alone.above_highest
    _, first = of(outcomes, ("single",))
    _, second = of(again, ("single",))
    assert both.seeds.spearman.value == pytest.approx(stats.spearmanr(first, second).statistic)
    assert both.seeds.icc.n == len(first) == 24
    assert alone.seeds.icc.value is None
    assert "several seeds" in alone.seeds.icc.reason


def test_recipes_and_subjects_are_kept_apart(outcomes):
    other = [dataclasses.replace(o, subject="other") for o in outcomes]
    base = many(np.random.default_rng(2), recipe="baseline", gain=0.0)
    scopes = summarise(outcomes + other + base, {}, draws=DRAWS).scopes
    assert [(s.recipe, s.subject, s.layer) for s in scopes] == [
        ("polylight", None, None),
        ("polylight", "net", None),
        ("polylight", "net", "a"),
        ("polylight", "net", "b"),
        ("polylight", "other", None),
        ("polylight", "other", "a"),
        ("polylight", "other", "b"),
        ("baseline", None, None),
        ("baseline", "net", "a"),
        ("baseline", "net", "b"),
    ]
    assert (
        scopes[1].scores
        == scopes[4].scores
        == summarise(outcomes, {}, draws=DRAWS).scopes[0].scores
    )
    assert scopes[0].neurons["max"] == 2 * scopes[1].neurons["max"] == 96


def test_what_is_not_there_has_a_reason_and_no_nan():
    rows = [
        outcome(),
        outcome(components=("a:1",), status="dead", scores={}, labels=[-1] * 3, k=0),
        outcome(components=("a:2",), scores={"polylight": float("nan")}),
    ]
    summary = summarise(rows, {"auroc": 0.9, "facet_recall": 0.9, "controls_difference": 0.05})
    (overall, _) = summary.scopes
    assert overall.unscored == {"dead": 1}
    assert overall.scores["polylight"].every.auroc.reason == "no composite has a score"
    assert overall.scores["polylight"].every.spearman.n == 1
    assert overall.images.facet_recall.reason == "no composite has images that count"
    assert [v.met for v in summary.verdicts] == [None] * 3
    json.dumps(summary.to_json(), allow_nan=False)


def test_equal_scores_have_an_auroc_but_no_correlation():
    rows = [outcome(), outcome("max", components=("a:0", "a:1"))]
    found = summarise(rows, {}, draws=DRAWS).scopes[0].scores["polylight"].every
    assert (found.auroc.value, found.auroc.low, found.auroc.n) == (0.5, None, 2)
    assert (found.spearman.value, found.spearman.reason) == (None, "all scores are equal")


def test_targets_are_a_least_and_for_controls_a_most():
    own = [outcome(score=0.1 * c, components=(f"a:{c}",)) for c in range(3)]
    rows = [
        *own,
        outcome("max", 0.9, components=("a:0", "a:1")),
        outcome("min", 0.2, components=("a:0", "a:1")),
        outcome("copies", 0.06, components=("a:0", "a:0")),
    ]
    targets = {"auroc": 1.0, "above_mean": 0.98, "k_exact": 0.9, "controls_difference": 0.05}
    verdicts = {v.name: v for v in summarise(rows, targets, draws=DRAWS).verdicts}
    assert {name: v.met for name, v in verdicts.items()} == {
        "auroc": True,
        "above_mean": True,
        "k_exact": False,
        "controls_difference": False,
    }
    assert verdicts["controls_difference"].value == pytest.approx(0.1)
    assert verdicts["k_exact"].value == 0.75


@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [
        ([], {}, "there are no outcomes"),
        ([outcome()], {"aurc": 0.9}, "no target 'aurc'; nearest: auroc"),
        ([outcome(), outcome()], {}, "'a:0' of net comes twice for recipe 'polylight' and seed 0"),
    ],
)
def test_what_cannot_be_summed_up_is_refused(rows, targets, message):
    with pytest.raises(InputError, match=message):
        summarise(rows, targets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "maximum"}, "of kind 'maximum', expected one of single, max"),
        ({"m": 2}, "'a:0' of kind 'single' cannot have 2 features"),
        ({"winner": [0]}, "has 3 labels, 1 winners and 3 activations"),
    ],
)
def test_outcomes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        outcome(**changes)


def test_json_has_the_same_keys_whatever_is_there(outcomes):
    def keys(tree):
        if isinstance(tree, dict):
            return {k: keys(v) for k, v in tree.items() if not k.isdigit()}
        return None

    full = summarise(outcomes, {}, draws=DRAWS).to_json()["scopes"][0]
    bare = summarise([outcome()], {}, draws=DRAWS).to_json()["scopes"][0]
    full["scores"].pop("paper")
    full["unscored"] = bare["unscored"] = {}
    assert keys(full) == keys(bare)
    assert json.loads(json.dumps(full)) == full
    assert list(full["images"]["k_by_m"]) == ["1", "2", "3", "4"]


def printed(summary):
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_summary(summary, console)
    return console.file.getvalue()


def test_the_table_fits_80_columns_and_names_what_is_missed(outcomes):
    base = many(np.random.default_rng(2), recipe="baseline", gain=0.0)
    base.append(outcome(components=("a:99",), recipe="baseline", status="dead", scores={}))
    targets = {"auroc": 0.8, "controls_difference": 0.05, "seeds_icc": 0.9}
    summary = summarise(outcomes + base, targets, draws=DRAWS)
    text = printed(summary)
    assert max(map(len, text.splitlines())) <= 80
    auroc = {s.recipe: s.scores["polylight"].every.auroc for s in summary.scopes if not s.layer}
    line = next(line for line in text.splitlines() if line.startswith("AUROC"))
    assert f"{auroc['polylight'].value:.3f}" in line
    assert f"{auroc['baseline'].value:.3f}" in line
    assert line.rstrip().endswith(">= 0.8")
    assert line.count("✓") == 1
    assert line.count("✗") == 1
    assert "polylight: no seeds_icc: fewer than two single channels have scores of several" in text
    assert "copies, 4 twins; unscored: 1 dead" in " ".join(text.split())
    assert text.count("Score 'polylight' by layer") == 1
    assert text.count("Every score") == 1


def test_many_recipes_are_printed_two_by_two(outcomes):
    rows = [dataclasses.replace(o, recipe=r) for r in ("r1", "r2", "[r3]") for o in outcomes]
    text = printed(summarise(rows, {}, draws=20))
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split() for line in text.splitlines() if line.startswith("measure")] == [
        ["measure", "r1", "r2"],
        ["measure", "[r3]"],
    ]


def test_the_roc_curve_is_sklearns(outcomes):
    m, scores = of(outcomes, ("single", "max"), "paper")
    false, true, _ = roc_curve(m > 1, scores, drop_intermediate=False)
    found = plot.roc_curve(scores[m == 1], scores[m > 1])
    np.testing.assert_allclose(found, (false, true), atol=1e-12)


def test_the_figure_is_drawn_twice_alike(outcomes, tmp_path):
    rows = outcomes + many(np.random.default_rng(2), recipe="baseline", gain=0.0)
    png, svg = draw(rows, tmp_path / "proof.pdf")
    assert (png, svg) == (tmp_path / "proof.png", tmp_path / "proof.svg")
    pixels = np.array(Image.open(png).convert("RGB"))
    assert pixels.shape == (640, 1440, 3)
    colours = {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (255, 255, 255)} <= colours
    again = draw(rows, tmp_path / "again.png")
    assert [path.read_bytes() for path in again] == [png.read_bytes(), svg.read_bytes()]
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == [
        "again.png",
        "again.svg",
        "proof.png",
        "proof.svg",
    ]


def test_the_figure_says_what_it_cannot_draw(outcomes, tmp_path):
    draw([o for o in outcomes if o.kind == "single"], tmp_path / "proof")
    with pytest.raises(InputError, match="scores 'polylight' of 1 to 7 recipes, but there are 0"):
        draw([outcome(status="dead", scores={})], tmp_path / "none")
