import dataclasses

import numpy as np
import pytest
import torch

from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.objective import Scale
from polylight.embedding.embedder import Embedder
from polylight.embedding.reference import Reference
from polylight.networks import load_model
from polylight.neurons import Component, Neuron
from polylight.planted.collect import (
    Run,
    first_outcomes,
    pooled_outcomes,
    run_outcomes,
    second_scores,
    view_outcomes,
)
from polylight.planted.neurons import PlantedNeuron
from polylight.planted.plan import LayerPlan
from polylight.scoring.scorer import Scorer

SCORER = Scorer(restarts=4)


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
        scales=(Scale(0.0, 1.0),),
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
    found = second_scores(rows, embedder, reference, SCORER, seed=3)
    assert found == pytest.approx(expected, abs=1e-6)
    assert second_scores(rows[::-1], embedder, reference, SCORER, seed=3) == found[::-1]
    assert second_scores([], embedder, reference, SCORER, seed=3) == []

    other, frame, again = rows_by("tiny:normed", 0.5)
    expected_again = [row.score for row in again]
    assert np.abs(np.subtract(expected, expected_again)).max() > 1e-3
    found = second_scores(rows, other, frame, SCORER, seed=3)
    assert found == pytest.approx(expected_again, abs=1e-6)


def test_scores_by_another_embedder_use_the_settings_and_the_baseline():
    embedder, reference, rows = rows_by("tiny:embedder", 0.25)
    found = second_scores(rows, embedder, reference, Scorer(max_clusters=1), seed=3)
    # One cluster counts for a quarter of the distance of its images, at the most.
    assert 0.0 < found[1] < 0.25 < rows[1].score - 0.05
    # What drives a neuron hardly more than the start did hardly counts.
    late = [dataclasses.replace(row, baseline=-2.95) for row in rows]
    found = second_scores(late, embedder, reference, SCORER, seed=3)
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
    found = second_scores(rows, embedder, reference, scorer, seed=3)
    assert found == pytest.approx(expected, abs=1e-6)
    found = second_scores(rows, embedder, reference, scorer, seed=4)
    assert np.abs(np.subtract(found, expected)).max() > 1e-3


def planted_run(embedder, reference, rows, **changes):
    """A run whose rows are three channels of conv2 and the max of the first two."""
    channels = [Component("conv2", c) for c in range(3)]
    planted = [PlantedNeuron(Neuron((c,)), "single", 1) for c in channels]
    both = PlantedNeuron(Neuron(tuple(channels[:2]), "max"), "max", 2)
    text = str(both.neuron)
    run = Run(
        subject="net",
        condition="polylight",
        seed=3,
        directory=None,
        neurons=[],
        arguments={},
        reference=reference,
        scorer=SCORER,
        layers=[
            LayerPlan(
                layer="conv2", planted=[*planted, both], similarity={text: 0.2}, classes=False
            )
        ],
        screened={"conv2:0": True, "conv2:1": True},
    )
    composite = dataclasses.replace(
        rows[0], neuron=text, channel=None, component=np.arange(18, dtype=np.int32) % 2
    )
    return dataclasses.replace(run, **changes), [*rows, composite]


@pytest.fixture(scope="module")
def scored():
    return planted_run(*rows_by("tiny:embedder", 0.25))


def test_an_outcome_has_what_its_row_has_and_what_is_known(scored):
    run, rows = scored
    outcomes = run_outcomes(run, rows)
    assert [o.neuron for o in outcomes] == [row.neuron for row in rows]
    for o, row in zip(outcomes, rows, strict=True):
        assert (o.status, o.k, o.seed, o.condition) == (row.status, row.k, 3, "polylight")
        assert o.scores["polylight"] == row.score
        assert o.scores["paper"] == row.score_paper
        assert o.label == row.label.tolist()
        assert o.component == row.component.tolist()
        assert o.valid == [label >= 0 for label in row.label]
    assert [o.screened for o in outcomes] == [True, True, False, True]
    assert [o.m for o in outcomes] == [1, 1, 1, 2]
    assert outcomes[3].components == ("conv2:0", "conv2:1")
    assert [o.similarity for o in outcomes] == [None, None, None, 0.2]
    # Only of rows that are there.
    assert [o.neuron for o in run_outcomes(run, rows[2:])] == [row.neuron for row in rows[2:]]
    assert run_outcomes(run, []) == []


def test_all_of_the_images_are_the_first_and_fewer_have_their_own_score(scored):
    run, rows = scored
    whole = first_outcomes(run, rows[:3], 18)
    assert [o.scores["polylight"] for o in whole] == pytest.approx(
        [r.score for r in rows[:3]], abs=1e-6
    )
    few = first_outcomes(run, rows[:3], 6)
    assert {(o.condition, len(o.label), len(o.activation)) for o in few} == {("first 6", 6, 6)}
    assert few[2].activation == pytest.approx(rows[2].activation[:6].tolist(), nan_ok=True)
    assert first_outcomes(run, rows, 19) == []
    dead = dataclasses.replace(rows[0], status="dead")
    assert first_outcomes(run, [dead], 6) == []


def test_a_view_is_the_score_of_its_vectors_alone(scored):
    run, rows = scored
    # Without a layer input the embedder is all that there is.
    alone = view_outcomes(run, rows[:3])
    assert {o.condition for o in alone} == {"embedder"}
    assert [o.scores["polylight"] for o in alone] == pytest.approx(
        [r.score for r in rows[:3]], abs=1e-6
    )
    # Two kinds of input, whatever the embedder sees: two equal features at right angles.
    kind = np.arange(18) % 2
    vectors = np.stack([1.0 - kind, 1.0 * kind], 1).astype(np.float32)
    row = dataclasses.replace(
        rows[0],
        layer_input=vectors,
        activation=np.ones(18, np.float32),
        label=np.zeros(18, np.int32),
    )
    embedder, layer_input = view_outcomes(run, [row])
    assert (embedder.condition, layer_input.condition) == ("embedder", "layer_input")
    assert layer_input.k == 2
    assert layer_input.label in (kind.tolist(), (1 - kind).tolist())
    assert layer_input.scores["polylight"] == pytest.approx(0.5, abs=0.03)


def test_images_of_components_are_pooled_as_equally_as_can_be(scored):
    run, rows = scored
    outcomes = {o.neuron: o for o in pooled_outcomes(run, rows)}
    assert outcomes.keys() == {row.neuron for row in rows}
    composite = outcomes["max(conv2:0,conv2:1)"]
    # Sixteen of the eighteen images of each are valid, so a pool is of sixteen: eight of each.
    assert [int((row.label >= 0).sum()) for row in rows[:2]] == [16, 16]
    assert composite.component == [0] * 8 + [1] * 8
    assert len(outcomes["conv2:2"].component) == 16
    gain = rows[0].activation - rows[0].baseline
    chosen = np.flatnonzero(rows[0].label >= 0)[:8]
    expected = gain[chosen] / gain[rows[0].label >= 0].max()
    assert composite.activation[:8] == pytest.approx(expected.tolist())
    # No more of any than the one with the fewest can give.
    label = rows[1].label.copy()
    label[np.flatnonzero(label >= 0)[5:]] = -1
    fewer = dataclasses.replace(rows[1], label=label)
    pooled = {o.neuron: o for o in pooled_outcomes(run, [rows[0], fewer])}
    assert pooled["max(conv2:0,conv2:1)"].component == [0] * 5 + [1] * 5
    # Without all components there is none.
    assert [o.neuron for o in pooled_outcomes(run, [rows[0], rows[3]])] == ["conv2:0"]
