import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from polylight.ascent.buffer import FinishedNeuron
from polylight.embedding.embedder import Embedder
from polylight.embedding.reference import Reference
from polylight.networks import load_model
from polylight.neurons import Component, Neuron
from polylight.planted import Outcome
from polylight.planted.reliability import agreement, calibration, rescore, seeds_agreement
from polylight.scoring.scorer import Scorer

SCORER = Scorer(restarts=4)


def outcome(neuron="a:0", score=0.5, *, seed=0, low=None, high=None, **changes):
    made = {
        "subject": "net",
        "recipe": "polylight",
        "layer": neuron.split(":")[0],
        "neuron": neuron,
        "kind": "single",
        "m": 1,
        "components": (neuron,),
        "screened": True,
        "status": "ok",
        # Only the first is looked at.
        "scores": {"polylight": score, "paper": 1 - score},
        "labels": [0],
        "winner": [0],
        "activation": [1.0],
        "k": 1,
        "score_low": low,
        "score_high": high,
        "seed": seed,
    }
    return Outcome(**(made | changes))


def test_agreement_is_in_rank_and_in_value():
    first, second = [0.1, 0.5, 0.2, 0.4], [0.3, 0.4, 0.1, 0.9]
    found = agreement(first, second)
    assert found.neurons == 4
    assert found.spearman == pytest.approx(stats.spearmanr(first, second).statistic)
    # MS_R = 5, MS_E = 0, MS_C = 2.5: 5 / (5 + 2 * 2.5 / 5).
    shifted = agreement(range(5), range(1, 6))
    assert (shifted.neurons, shifted.spearman) == (5, 1.0)
    assert shifted.icc == pytest.approx(5 / 6)
    assert agreement([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]).spearman == -1.0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_agreement_of_fewer_than_three_neurons_is_undefined(count):
    found = agreement([0.1, 0.2][:count], [0.1, 0.2][:count])
    assert found.neurons == count
    assert math.isnan(found.spearman)
    assert math.isnan(found.icc)


def of_seeds(neuron, by_seed, **changes):
    return [outcome(neuron, score, seed=seed, **changes) for seed, score in by_seed.items()]


def test_the_first_two_seeds_are_compared_over_single_channels_that_have_both():
    outcomes = [
        # Not in the order of the seeds; the last seed plays no component.
        *of_seeds("a:0", {11: 0.9, 3: 0.1, 9: 0.2}),
        *of_seeds("a:1", {3: 0.2, 11: 0.0, 9: 0.1}),
        *of_seeds("b:0", {9: 0.4, 3: 0.4, 11: 0.1}),
        *of_seeds("a:2", {3: 0.9, 11: 0.0}),
        *of_seeds("a:3", {3: 0.9, 9: 0.0}, status="dead"),
        *of_seeds("a:4", {3: 0.9, 9: math.nan}),
        *of_seeds("a:5", {3: 0.9, 9: 0.0}, scores={"paper": 0.5}),
        *of_seeds("max(a:0,a:1)", {3: 0.9, 9: 0.0}, kind="max", m=2),
    ]
    found = seeds_agreement(outcomes)
    assert found.neurons == 3
    # Ranks 1 2 3 and 2 1 3: 1 - 6 * 2 / (3 * 8).
    assert found.spearman == pytest.approx(0.5)
    # MS_R = 1/24, MS_E = 0.005 and MS_C = 0: (1/24 - 0.005) / (1/24 + 0.005 - 2 * 0.005 / 3).
    assert found.icc == pytest.approx(11 / 13)
    # Sums are rounded in another order.
    backwards = seeds_agreement(outcomes[::-1])
    assert dataclasses.astuple(backwards) == pytest.approx(dataclasses.astuple(found))


def test_neurons_of_two_networks_are_two():
    scores = {0: 0.1, 1: 0.2}, {0: 0.2, 1: 0.3}, {0: 0.3, 1: 0.1}
    outcomes = [o for i, s in enumerate(scores) for o in of_seeds("a:0", s, subject=f"net{i}")]
    found = seeds_agreement(outcomes)
    assert found.neurons == 3
    # Ranks 1 2 3 and 2 3 1: 1 - 6 * 6 / (3 * 8).
    assert found.spearman == pytest.approx(-0.5)


def test_one_seed_agrees_with_none():
    found = seeds_agreement([outcome(f"a:{c}", c / 10) for c in range(5)])
    assert found.neurons == 0
    assert math.isnan(found.icc)
    assert seeds_agreement([]).neurons == 0


def with_intervals(neuron, found, **changes):
    return [
        outcome(neuron, score, seed=seed, low=low, high=high, **changes)
        for seed, (score, low, high) in enumerate(found)
    ]


def test_intervals_are_held_against_the_mean_of_the_other_seeds():
    outcomes = [
        # The mean of all is 0.3; those of the others are 0.4, 0.35 and 0.15.
        *with_intervals("a:0", [(0.1, 0.35, 0.45), (0.2, 0.25, 0.32), (0.6, 0.1, 0.2)]),
        # Held, above, below, held.
        *with_intervals(
            "max(a:0,a:1)",
            [(0.5, 0.4, 0.6), (0.5, 0.51, 0.6), (0.5, 0.4, 0.49), (0.5, 0.45, 0.55)],
            kind="max",
            m=2,
        ),
        # Too few seeds, whatever another network has.
        *with_intervals("a:2", [(0.5, 0.0, 1.0)] * 2),
        *with_intervals("a:2", [(0.5, 0.0, 1.0)] * 2, subject="other"),
        # Two that can be used, and one that has no interval, or no score.
        *with_intervals("a:3", [(0.5, 0.0, 1.0)] * 2 + [(0.5, None, None)]),
        *with_intervals("a:4", [(0.5, 0.0, 1.0)] * 2 + [(math.nan, 0.0, 1.0)]),
        *with_intervals("a:5", [(0.5, 0.0, 1.0)] * 4, status="dead"),
        *with_intervals("a:6", [(0.5, 0.0, None)] * 4),
        *with_intervals("a:7", [(0.5, None, 1.0)] * 4),
    ]
    found = calibration(outcomes)
    assert (found.neurons, found.seeds) == (2, 4)
    assert found.coverage == pytest.approx((2 + 2) / 7)
    widths = [0.1, 0.07, 0.1, 0.2, 0.09, 0.09, 0.1]
    assert found.width == pytest.approx(sum(widths) / 7)


def test_the_ends_belong_to_an_interval_that_may_begin_at_0():
    ends = [(0.25, 0.5, 0.75), (0.5, 0.0, 0.375), (0.5, 0.375, 0.375)]
    found = calibration(with_intervals("a:0", ends))
    assert found.coverage == 1.0
    found = calibration(with_intervals("a:0", [(0.0, 0.0, 0.0)] * 3))
    assert (found.coverage, found.width) == (1.0, 0.0)


def test_fewer_than_three_seeds_calibrate_nothing():
    assert calibration([]) is None
    assert calibration(with_intervals("a:0", [(0.5, 0.0, 1.0)] * 2)) is None
    assert calibration(of_seeds("a:0", dict.fromkeys(range(5), 0.5))) is None


def made_of(embedder, channel, kinds, count=18):
    """A neuron with images of some kinds, as an embedder sees them; the last one is inactive."""
    generator = torch.Generator().manual_seed(channel)
    base = torch.randint(0, 200, (4, 3, 1, 1), generator=torch.Generator().manual_seed(9))
    dots = torch.randint(0, 56, (count, 3, 32, 32), generator=generator)
    # Most are of the first kind, and they are the weakest.
    kind = torch.tensor([0, 0, 0, 1, 1, 2]).clamp_max(kinds - 1).repeat(count // 6)
    images = (base[kind] + dots).to(torch.uint8)
    inactive = torch.zeros(count, dtype=torch.bool)
    inactive[-1] = True
    activations = -3.0 + 0.4 * kind + 0.1 * torch.rand(count, generator=generator)
    # An image that became non-finite is not valid either.
    activations[0] = torch.nan
    return FinishedNeuron(
        neuron=Neuron((Component("conv2", channel),)),
        images=images,
        embeddings=Embedder(embedder)(images / 255.0),
        layer_input=torch.zeros(count, 0),
        activations=activations,
        # Weights are gains over it; those over 0 would all be 0.
        baseline=-4.0,
        inactive=inactive,
        component=torch.zeros(count, dtype=torch.int64),
        steps=1,
        stop_reason="elbow",
    )


def rows_by(name, mean):
    """An embedder, a frame for it, and three neurons as they score with it."""
    embedder = load_model(name)
    finished = [made_of(embedder, channel, kinds) for channel, kinds in enumerate((1, 2, 3))]
    dims = finished[0].embeddings.shape[1]
    reference = Reference("key", torch.linspace(0, mean, dims), {}, {})
    rows = SCORER.rows(finished, reference, max_images=18, seed=3, seconds_per_step=1.0)
    return embedder, reference, rows


def test_the_same_embedder_gives_the_scores_of_the_rows_and_another_gives_its_own():
    embedder, reference, rows = rows_by("tiny:embedder", 0.25)
    expected = [row.score for row in rows]
    assert [row.label[-1] for row in rows] == [-1] * 3
    assert [row.label[0] for row in rows] == [-1] * 3
    # They could not be told from each other otherwise.
    assert min(np.diff(expected)) > 0.1
    found = rescore(rows, embedder, reference, SCORER, seed=3)
    assert found == pytest.approx(expected, abs=1e-6)
    assert rescore(rows[::-1], embedder, reference, SCORER, seed=3) == found[::-1]
    assert rescore([], embedder, reference, SCORER, seed=3) == []

    other, frame, again = rows_by("tiny:normed", 0.5)
    expected_again = [row.score for row in again]
    assert np.abs(np.subtract(expected, expected_again)).max() > 1e-3
    found = rescore(rows, other, frame, SCORER, seed=3)
    assert found == pytest.approx(expected_again, abs=1e-6)


def test_scores_by_another_embedder_use_the_settings_and_the_baseline():
    embedder, reference, rows = rows_by("tiny:embedder", 0.25)
    found = rescore(rows, embedder, reference, Scorer(max_clusters=1), seed=3)
    # One cluster counts for a quarter of how far its images spread, at the most.
    assert 0.0 < found[1] < 0.25 < rows[1].score - 0.05
    # What drives a neuron hardly more than the start did hardly counts.
    late = [dataclasses.replace(row, baseline=-2.95) for row in rows]
    found = rescore(late, embedder, reference, SCORER, seed=3)
    assert found[1] < rows[1].score - 0.05


def test_clusters_start_from_the_random_stream_of_the_run():
    scorer = Scorer(restarts=1)
    embedder = load_model("tiny:embedder")
    generator = torch.Generator().manual_seed(0)
    finished = []
    for channel in range(6):
        # Of no kinds at all, so that one start finds other clusters than another.
        one = made_of(embedder, channel, 1)
        images = torch.randint(0, 256, (18, 3, 4, 4), generator=generator, dtype=torch.uint8)
        images = images.repeat_interleave(8, 2).repeat_interleave(8, 3)
        embeddings = Embedder(embedder)(images / 255.0)
        finished.append(dataclasses.replace(one, images=images, embeddings=embeddings))
    # The frame leaves what they have in common out.
    mean = torch.cat([one.embeddings for one in finished]).mean(0)
    reference = Reference("key", mean, {}, {})
    rows = scorer.rows(finished, reference, max_images=18, seed=3, seconds_per_step=1.0)
    expected = [row.score for row in rows]
    found = rescore(rows, embedder, reference, scorer, seed=3)
    assert found == pytest.approx(expected, abs=1e-6)
    found = rescore(rows, embedder, reference, scorer, seed=4)
    assert np.abs(np.subtract(found, expected)).max() > 1e-3
