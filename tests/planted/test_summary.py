import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from polylight.errors import InputError
from polylight.planted.summary import agreement, as_json, calibration, check_targets, summarise
from polylight.planted.table import MEASURES
from tests.planted.outcomes import many, of, outcome

RESAMPLES = 200


@pytest.fixture
def outcomes():
    return many(np.random.default_rng(0))


@pytest.mark.parametrize("name", ["polylight", "paper"])
def test_separation_is_sklearns_and_scipys(outcomes, name):
    overall, layer_a, layer_b = summarise(outcomes, resamples=RESAMPLES)
    for scope, wanted in ((overall, {}), (layer_a, {"layer": "a"}), (layer_b, {"layer": "b"})):
        found = scope.scores[name]
        for suffix, kinds, more in (
            ("", ("single", "max", "min", "copies", "near_duplicates"), {}),
            ("_without_controls", ("single", "max"), {}),
            ("_screened", ("single", "max"), {"screened": True}),
        ):
            m, scores = of(outcomes, kinds, name, **wanted, **more)
            auroc, spearman = found[f"auroc{suffix}"], found[f"spearman{suffix}"]
            assert auroc.value == pytest.approx(roc_auc_score(m > 1, scores))
            assert spearman.value == pytest.approx(stats.spearmanr(m, scores).statistic)
            right = stats.spearmanr(np.sort(m), np.arange(len(m))).statistic
            assert found[f"spearman_bound{suffix}"].value == pytest.approx(right)
            assert auroc.n == spearman.n == len(m)


def test_within_layers_is_the_mean_of_the_layers():
    uneven = many(np.random.default_rng(1))
    uneven = [o for o in uneven if o.layer == "a" or o.m < 4]
    overall, *layers = summarise(uneven, resamples=RESAMPLES)
    found = overall.scores["polylight"]
    own = [scope.scores["polylight"] for scope in layers]
    within, auroc = (found[f"auroc{name}_without_controls"] for name in ("_within_layers", ""))
    values = [scores["auroc_without_controls"].value for scores in own]
    assert within.value == pytest.approx(np.average(values, weights=[12 * 24, 12 * 16]))
    assert within.value > auroc.value
    values = [scores["spearman_without_controls"].value for scores in own]
    ranked = found["spearman_within_layers_without_controls"]
    assert ranked.value == pytest.approx(np.average(values, weights=[36, 28]))
    for scores in own:
        assert scores["auroc_within_layers"] == scores["auroc"]


def test_intervals_are_those_of_a_bootstrap_within_layer_and_m(outcomes):
    overall = summarise(outcomes, resamples=2000)[0]
    found = overall.scores["polylight"]
    strata = [
        of(outcomes, ("single", "max"), layer=layer, m=m) for layer in "ab" for m in (1, 2, 3, 4)
    ]
    rng, aurocs, spearmans = np.random.default_rng(9), [], []
    for _ in range(800):
        drawn = [(m, rng.choice(s, len(s))) for m, s in strata]
        m, scores = (np.concatenate(column) for column in zip(*drawn, strict=True))
        aurocs.append(roc_auc_score(m > 1, scores))
        spearmans.append(stats.spearmanr(m, scores).statistic)
    for estimate, values in (
        (found["auroc_without_controls"], aurocs),
        (found["spearman_without_controls"], spearmans),
    ):
        expected = np.quantile(values, [0.025, 0.975])
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.015)


def test_composites_are_compared_with_their_own_components():
    own = [outcome(score=s, components=(f"a:{c}",)) for c, s in enumerate([0.1, 0.3, 0.5])]
    composites = [
        outcome("max", 0.6, components=("a:0", "a:1")),
        outcome("max", 0.4, components=("a:0", "a:2")),
        outcome("max", 0.3, components=("a:0", "a:1", "a:2")),
        outcome("max", 0.3, components=("a:0", "a:9")),
    ]
    found = summarise(own + composites, resamples=RESAMPLES)[0].scores["polylight"]
    # The third is equal to the mean of its components; the fourth has a component without a score.
    assert (found["above_mean"].value, found["above_mean"].n) == (pytest.approx(2 / 3), 3)
    assert (found["above_highest"].value, found["above_highest"].n) == (pytest.approx(1 / 3), 3)
    expected = stats.binomtest(2, 3).proportion_ci(method="wilson")
    assert (found["above_mean"].low, found["above_mean"].high) == pytest.approx(tuple(expected))


def test_controls_are_compared_with_singles_and_with_their_own_components():
    own = [outcome(score=s, components=(f"a:{c}",)) for c, s in enumerate([0.1, 0.3, 0.5])]
    controls = [
        outcome("min", 0.2, components=("a:0", "a:1")),
        outcome("min", 0.4, components=("a:1", "a:2")),
        outcome("copies", 0.35, components=("a:1", "a:1")),
    ]
    found = summarise(own + controls, resamples=RESAMPLES)[0].scores["polylight"]
    assert found["min_mean"].value == pytest.approx(0.3)
    assert found["min_difference"].value == pytest.approx(0.0)
    assert found["min_above_components"].value == pytest.approx(0.0)
    assert found["copies_difference"].value == pytest.approx(0.05)
    assert found["copies_above_components"].value == pytest.approx(0.05)
    assert found["near_duplicates_mean"].value is None
    assert (
        found["near_duplicates_difference"].reason
        == "no neuron of kind 'near_duplicates' has a score"
    )


def test_images_and_clusters(outcomes):
    found = summarise(outcomes, resamples=RESAMPLES)[0].images
    composites = [o for o in outcomes if o.kind == "max"]
    valid = [np.array(o.label) >= 0 for o in composites]
    recall = [
        len(set(np.array(o.component)[v].tolist())) / o.m
        for o, v in zip(composites, valid, strict=True)
    ]
    assert found["feature_recall"].value == pytest.approx(np.mean(recall))
    assert found["feature_recall"].n == len(composites)
    by_m = [
        np.mean([r for r, o in zip(recall, composites, strict=True) if o.m == m]) for m in (2, 3, 4)
    ]
    assert [found[f"feature_recall_m{m}"].value for m in (2, 3, 4)] == pytest.approx(by_m)
    made = [len(set(o.component)) / o.m for o in composites]
    assert found["feature_recall_all_images"].value == pytest.approx(np.mean(made))
    assert np.mean(made) > np.mean(recall)
    plain = [o for o in outcomes if o.kind in ("single", "max")]
    share = [np.mean([label >= 0 for label in o.label]) for o in plain]
    assert found["valid"].value == pytest.approx(np.mean(share))
    assert found["valid"].n == len(plain)
    agreement = [
        adjusted_rand_score(np.array(o.component)[v], np.array(o.label)[v])
        for o, v in zip(composites, valid, strict=True)
    ]
    assert found["adjusted_rand"].value == pytest.approx(np.mean(agreement))
    plain = [o for o in outcomes if o.kind in ("single", "max")]
    assert found["k_error"].value == pytest.approx(np.mean([o.k - o.m for o in plain]))
    assert found["k_exact"].value == pytest.approx(np.mean([o.k == o.m for o in plain]))
    threes = [o for o in plain if o.m == 3]
    assert found["k_error_m3"].value == pytest.approx(np.mean([o.k - 3 for o in threes]))
    assert found["k_exact_m3"].n == len(threes)


def test_pairs_score_higher_the_less_similar_their_components(outcomes):
    found = summarise(outcomes, resamples=RESAMPLES)[0].scores["polylight"]
    _, near = of(outcomes, ("near_duplicates",))
    _, two = of(outcomes, ("max",), m=2)
    truth = np.r_[np.zeros(len(near)), np.ones(len(two))]
    assert found["near_duplicates_auroc"].value == pytest.approx(
        roc_auc_score(truth, np.r_[near, two])
    )
    pairs = [o for o in outcomes if o.kind == "near_duplicates" or (o.kind == "max" and o.m == 2)]
    expected = stats.spearmanr(
        [-o.similarity for o in pairs], [o.scores["polylight"] for o in pairs]
    ).statistic
    assert found["dissimilarity_spearman"].value == pytest.approx(expected)
    assert found["interval_width"].value == pytest.approx(0.3)


def test_seeds_are_compared_and_the_lowest_counts(outcomes):
    again = many(np.random.default_rng(5), seed=7)
    both = summarise(again + outcomes, resamples=RESAMPLES)[0].scores["polylight"]
    alone = summarise(outcomes, resamples=RESAMPLES)[0].scores["polylight"]
    # Resamples go by the order of neurons, which is the same.
    assert {k: v for k, v in both.items() if not k.startswith("seeds_")} == {
        k: v for k, v in alone.items() if not k.startswith("seeds_")
    }
    _, first = of(outcomes, ("single",))
    _, second = of(again, ("single",))
    assert both["seeds_spearman"].value == pytest.approx(stats.spearmanr(first, second).statistic)
    assert both["seeds_icc"].n == len(first) == 24
    assert alone["seeds_icc"].value is None
    assert "several seeds" in alone["seeds_icc"].reason


def test_conditions_and_subjects_are_kept_apart(outcomes):
    other = [dataclasses.replace(o, subject="other") for o in outcomes]
    base = many(np.random.default_rng(2), condition="baseline", gain=0.0)
    scopes = summarise(outcomes + other + base, resamples=RESAMPLES)
    assert [(s.condition, s.subject, s.layer) for s in scopes] == [
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
        scopes[1].scores == scopes[4].scores == summarise(outcomes, resamples=RESAMPLES)[0].scores
    )
    assert scopes[0].neurons["max"] == 2 * scopes[1].neurons["max"] == 96


def test_what_is_not_there_has_a_reason_and_no_nan():
    rows = [
        outcome(),
        outcome(components=("a:1",), status="dead", scores={}, label=[-1] * 3, k=0),
        outcome(components=("a:2",), scores={"polylight": math.nan}),
    ]
    overall, _ = scopes = summarise(rows, resamples=RESAMPLES)
    assert overall.unscored == {"dead": 1}
    found = overall.scores["polylight"]
    assert found["auroc"].reason == "no composite has a score"
    assert (found["spearman"].n, found["spearman_bound"].value) == (1, None)
    assert overall.images["feature_recall"].reason == "no composite has valid images"
    targets = {"auroc": 0.9, "feature_recall": 0.9, "controls_difference": 0.05}
    assert [target["met"] for target in check_targets(scopes, targets)] == [None] * 3
    assert json.loads(json.dumps(as_json(scopes), allow_nan=False)) == as_json(scopes)


def test_equal_scores_have_an_auroc_but_no_correlation():
    rows = [outcome(), outcome("max", components=("a:0", "a:1"))]
    found = summarise(rows, resamples=RESAMPLES)[0].scores["polylight"]
    assert (found["auroc"].value, found["auroc"].low, found["auroc"].n) == (0.5, None, 2)
    assert (found["spearman"].value, found["spearman"].reason) == (None, "all scores are equal")


def test_targets_are_a_least_and_for_controls_a_most():
    own = [outcome(score=0.1 * c, components=(f"a:{c}",)) for c in range(3)]
    rows = [
        *own,
        outcome("max", 0.9, components=("a:0", "a:1")),
        outcome("min", 0.2, components=("a:0", "a:1")),
        outcome("copies", 0.06, components=("a:0", "a:0")),
    ]
    targets = {"auroc": 1.0, "above_mean": 0.98, "k_exact": 0.9, "controls_difference": 0.05}
    found = check_targets(summarise(rows, resamples=RESAMPLES), targets)
    by_name = {target["measure"]: target for target in found}
    assert {name: target["met"] for name, target in by_name.items()} == {
        "auroc": True,
        "above_mean": True,
        "k_exact": False,
        "controls_difference": False,
    }
    assert by_name["controls_difference"]["value"] == pytest.approx(0.1)
    assert by_name["k_exact"]["value"] == 0.75
    with pytest.raises(InputError, match="no target 'aurc'; nearest: auroc"):
        check_targets([], {"aurc": 0.9})


def test_a_score_that_nobody_has_meets_no_target():
    (target, *_) = check_targets(
        summarise([outcome(scores={"paper": 0.1})], resamples=20), {"auroc": 0.9}
    )
    assert (target["met"], target["reason"]) == (None, "no neuron has a score 'polylight'")


def test_the_same_is_measured_whatever_is_there(outcomes):
    full, bare = summarise(outcomes, resamples=20)[0], summarise([outcome()], resamples=20)[0]

    def without_m(names):
        return [name for name in names if not name[-1].isdigit()]

    assert without_m(full.images) == without_m(bare.images)
    assert without_m(full.scores["polylight"]) == without_m(bare.scores["polylight"])
    measured = {*full.images, *full.scores["polylight"]}
    assert measured > {*MEASURES}
    assert {"mean_m1", "mean_m4", "feature_recall_m2", "k_error_m1", "k_exact_m4"} < measured


def test_agreement_is_in_rank_and_in_value():
    first, second = [0.1, 0.5, 0.2, 0.4], [0.3, 0.4, 0.1, 0.9]
    found = agreement(first, second)
    assert found["neurons"] == 4
    assert found["spearman"] == pytest.approx(stats.spearmanr(first, second).statistic)
    # MS_R = 5, MS_E = 0, MS_C = 2.5: 5 / (5 + 2 * 2.5 / 5).
    assert agreement(range(5), range(1, 6)) == pytest.approx(
        {"neurons": 5, "spearman": 1.0, "icc": 5 / 6}
    )
    assert agreement([3.0, 2.0, 1.0], [1.0, 2.0, 3.0])["spearman"] == pytest.approx(-1.0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_agreement_of_fewer_than_three_neurons_is_undefined(count):
    found = agreement([0.1, 0.2][:count], [0.1, 0.2][:count])
    assert found == {"neurons": count, "spearman": None, "icc": None}


def of_seeds(neuron, by_seed, **changes):
    made = []
    for seed, (score, low, high) in enumerate(by_seed):
        given = {"score_low": low, "score_high": high, "seed": seed, **changes}
        made.append(outcome(score=score, components=(neuron,), **given))
    return made


def test_seeds_agree_over_single_channels_that_have_all():
    scores = {
        # Ranks 1 2 3 and 2 1 3: 1 - 6 * 2 / (3 * 8).
        "a:0": {3: 0.1, 9: 0.2},
        "a:1": {3: 0.2, 9: 0.1},
        "b:0": {3: 0.4, 9: 0.4},
        "a:2": {3: 0.9},
        "a:3": {3: 0.9, 9: math.nan},
    }
    made = [
        outcome(score=score, components=(neuron,), seed=seed)
        for neuron, by_seed in scores.items()
        for seed, score in reversed(by_seed.items())
    ]
    made += [outcome("max", 0.5, components=("a:0", "a:1"), seed=seed) for seed in (3, 9)]
    made += [outcome(score=0.5, components=("a:4",), seed=s, status="dead") for s in (3, 9)]
    found = summarise(made, resamples=RESAMPLES)[0].scores["polylight"]
    assert (found["seeds_spearman"].n, found["seeds_icc"].n) == (3, 3)
    assert found["seeds_spearman"].value == pytest.approx(0.5)
    # MS_R = 1/24, MS_E = 0.005 and MS_C = 0: (1/24 - 0.005) / (1/24 + 0.005 - 2 * 0.005 / 3).
    assert found["seeds_icc"].value == pytest.approx(11 / 13)


def test_intervals_are_held_against_the_mean_of_the_other_seeds():
    made = [
        # The mean of all is 0.3; those of the others are 0.4, 0.35 and 0.15.
        *of_seeds("a:0", [(0.1, 0.35, 0.45), (0.2, 0.25, 0.32), (0.6, 0.1, 0.2)]),
        # Held, above, below, held.
        *of_seeds("a:1", [(0.5, 0.4, 0.6), (0.5, 0.51, 0.6), (0.5, 0.4, 0.49), (0.5, 0.45, 0.55)]),
        # Too few seeds, whatever another network has.
        *of_seeds("a:2", [(0.5, 0.0, 1.0)] * 2),
        *of_seeds("a:2", [(0.5, 0.0, 1.0)] * 2, subject="other"),
        # Two that can be used, and one that has no interval, or no score.
        *of_seeds("a:3", [(0.5, 0.0, 1.0)] * 2 + [(0.5, None, None)]),
        *of_seeds("a:4", [(0.5, 0.0, 1.0)] * 2 + [(math.nan, 0.0, 1.0)]),
        *of_seeds("a:5", [(0.5, 0.0, 1.0)] * 4, status="dead"),
        *of_seeds("a:6", [(0.5, 0.0, None)] * 4),
        *of_seeds("a:7", [(0.5, None, 1.0)] * 4),
    ]
    widths = [0.1, 0.07, 0.1, 0.2, 0.09, 0.09, 0.1]
    assert calibration(made) == pytest.approx(
        {"neurons": 2, "seeds": 4, "coverage": (2 + 2) / 7, "width": sum(widths) / 7}
    )


def test_the_ends_belong_to_an_interval_that_may_begin_at_0():
    ends = [(0.25, 0.5, 0.75), (0.5, 0.0, 0.375), (0.5, 0.375, 0.375)]
    assert calibration(of_seeds("a:0", ends))["coverage"] == 1.0
    found = calibration(of_seeds("a:0", [(0.0, 0.0, 0.0)] * 3))
    assert (found["coverage"], found["width"]) == (1.0, 0.0)


def test_fewer_than_three_seeds_calibrate_nothing():
    assert calibration([]) is None
    assert calibration(of_seeds("a:0", [(0.5, 0.0, 1.0)] * 2)) is None
    assert calibration(of_seeds("a:0", [(0.5, None, None)] * 5)) is None
