import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.objective import Scale
from polylight.clustering import cluster, gap_statistic
from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.kernels import stream_key
from polylight.module import PolysemanticityModule
from polylight.neurons import Component, Neuron
from polylight.scoring import partition_score
from polylight.scoring.scorer import Scorer

DIMS, NUM = 20, 12
SCORER = Scorer(restarts=4)
DIRECTIONS = torch.linalg.qr(
    torch.randn(DIMS, 8, generator=torch.Generator().manual_seed(1))
).Q.T.contiguous()


@pytest.fixture
def reference():
    generator = torch.Generator().manual_seed(0)
    return Reference("key", torch.randn(DIMS, generator=generator), {}, {})


def finished(reference, channel, facets, *, count=NUM, activations=None, **fields):
    """A neuron whose images lie around some of eight directions at right angles, in turn."""
    generator = torch.Generator().manual_seed(channel)
    which = torch.arange(count) % max(facets, 1)
    noise = 0.05 * torch.randn(count, DIMS, generator=generator)
    made = {
        "neuron": Neuron((Component("conv2", channel),)),
        "images": torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "embeddings": reference.mean + 3 * DIRECTIONS[which] + noise,
        "layer_input": torch.zeros(count, 0),
        "scales": (Scale(0.0, 1.0),),
        "activations": torch.full((count,), 2.0) if activations is None else activations,
        "baseline": 0.5,
        "inactive": torch.zeros(count, dtype=torch.bool),
        "component": torch.zeros(count, dtype=torch.int64),
        "steps": 100 + channel,
        "stop_reason": "elbow",
    }
    return FinishedNeuron(**(made | fields))


def rows(neurons, reference, scorer=SCORER, **settings):
    given = {"max_images": NUM, "seed": 3, "seconds_per_step": 0.25} | settings
    return scorer.rows(neurons, reference, **given)


def test_facets_become_clusters_and_columns(reference):
    neuron = finished(reference, 7, 3)
    (row,) = rows([neuron], reference)
    assert (row.neuron, row.layer, row.channel, row.status) == ("conv2:7", "conv2", 7, "ok")
    assert row.k == 3
    assert row.score == pytest.approx(2 / 3, abs=0.02)
    assert row.k_eff == pytest.approx(1 / (1 - row.score))
    assert 0 <= row.score_paper <= 1
    assert 0 <= row.score_low <= row.score <= row.score_high <= 1
    assert row.separation > 4.0
    assert row.p_value < 0.05
    assert row.q_value is None
    assert row.coverage == 1.0
    # A half of six images reaches three clusters of two.
    assert 0 < row.k_stability < 1
    assert (row.num_images, row.steps, row.stop_reason, row.seed) == (NUM, 107, "elbow", 3)
    assert row.seconds == pytest.approx(107 * 0.25)
    assert len(row.bic) == 8
    assert row.label.dtype == np.int32
    assert len(set(row.label[:3])) == 3
    assert (row.label == np.tile(row.label[:3], 4)).all()
    np.testing.assert_allclose(row.cluster_weight, 1 / 3, atol=1e-6)
    np.testing.assert_array_equal(row.activation, neuron.activations.numpy())
    np.testing.assert_array_equal(row.embedding, neuron.embeddings.numpy())
    np.testing.assert_array_equal(row.layer_input, neuron.layer_input.numpy())
    first = np.asarray(Image.open(io.BytesIO(row.image[0])))
    np.testing.assert_array_equal(first, neuron.images[0].permute(1, 2, 0).numpy())


def test_one_facet_scores_next_to_nothing(reference):
    (row,) = rows([finished(reference, 1, 1)], reference)
    assert row.k == 1
    assert row.separation < 3.0
    assert 0.0 <= row.score < 0.01
    assert row.k_eff == pytest.approx(1 / (1 - row.score))
    assert row.cluster_weight.tolist() == [1.0]
    assert (row.label == 0).all()
    assert 0.0 <= row.score_low <= row.score
    # There may be features that all twelve images missed.
    assert row.score_high == pytest.approx(1 - (1 - row.score) * (NUM / (NUM + 1)) ** 2)
    assert row.p_value > 0.05


@pytest.mark.parametrize("facets", [1, 2])
def test_the_score_is_by_the_evidence(reference, facets):
    neuron = finished(reference, 3, facets, activations=torch.linspace(2.0, 3.0, NUM))
    (row,) = rows([neuron], reference)
    frame = reference.join(neuron.embeddings, neuron.layer_input)[None]
    given = {
        "valid": torch.ones(1, NUM, dtype=torch.bool),
        "keys": torch.tensor([stream_key(3, neuron.neuron, "cluster")]),
    }
    baseline = torch.tensor([neuron.baseline])
    cut = partition_score(frame, neuron.activations[None], baseline=baseline, restarts=4, **given)
    test = gap_statistic(torch.nn.functional.normalize(frame.double(), dim=-1), **given)
    separation = test.gaps[0, : cut.k.item() - 1].mean().item()
    assert row.separation == pytest.approx(separation, abs=1e-9)
    assert row.p_value == test.p_value.item()
    evidence = 1 / (1 + math.exp(4.0 - row.separation))
    expected = evidence * cut.score.item() + (1 - evidence) * cut.mean_distance.item() / 4
    assert row.score == pytest.approx(expected, rel=1e-9)
    assert row.k == (cut.k.item() if row.separation > 4.0 else 1)


@pytest.mark.parametrize("selection", ["bic", "xmeans", "gmeans"])
def test_the_score_of_alic_et_al_is_that_of_raw_embeddings_by_any_selection(reference, selection):
    settings = {"restarts": 4, "selection": selection}
    # Rectified features, as a ResNet's are: all cosines are at least 0.
    plain = dataclasses.replace(reference, mean=torch.zeros(DIMS))
    axes = torch.eye(DIMS)[torch.arange(NUM) % 3] * torch.tensor([1.0, 2.0, 4.0]).repeat(4)[:, None]
    noise = 0.02 * torch.rand(NUM, DIMS, generator=torch.Generator().manual_seed(4))
    neuron = finished(plain, 2, 3, embeddings=axes + noise)
    (row,) = rows([neuron], plain, Scorer(reported_score="score_paper", **settings))
    found = cluster(
        neuron.embeddings[None],
        valid=torch.ones(1, NUM, dtype=torch.bool),
        keys=torch.tensor([stream_key(3, neuron.neuron, "cluster")]),
        k_max=8,
        **settings,
    )
    assert row.k == found.k.item() > 1
    np.testing.assert_array_equal(row.label, found.labels[0])
    # The formula by hand: by pairs of centres, their angle and the balance of their lengths.
    points = neuron.embeddings.double().numpy()
    centres = [points[row.label == i].mean(0) for i in range(row.k)]
    apart = []
    for one, other in itertools.combinations(centres, 2):
        a, b = np.linalg.norm(one), np.linalg.norm(other)
        apart.append(np.arccos(one @ other / a / b) / np.pi * 2 * min(a, b) / (a + b))
    count, distance = (row.k - 1) / (NUM - 1), np.mean(apart)
    assert row.score_paper == pytest.approx(count + distance - count * distance, rel=1e-6)
    # The score is the same whichever is reported; only the clusters in the row are not.
    (other,) = rows([neuron], plain, Scorer(**settings))
    assert (other.score, other.score_paper) == (row.score, row.score_paper)


def test_the_clusters_of_a_row_are_those_of_the_reported_score(reference):
    # Of these, the centred directions have two clusters, and the raw embeddings one.
    near = reference.mean * 50
    far = dataclasses.replace(reference, mean=near)
    activations = torch.full((NUM,), 2.0)
    activations[0] = 0.6
    neuron = finished(far, 5, 2, activations=activations)
    (own,) = rows([neuron], far)
    (alic,) = rows([neuron], far, Scorer(restarts=4, reported_score="score_paper"))
    plain = cluster(
        neuron.embeddings[None],
        valid=torch.ones(1, NUM, dtype=torch.bool),
        keys=torch.tensor([stream_key(3, neuron.neuron, "cluster")]),
        k_max=8,
        restarts=4,
    )
    # The weak image is not valid; Alic et al. leave none out.
    assert own.label[0] == -1
    np.testing.assert_array_equal(alic.label, plain.labels[0])
    assert alic.k == plain.k.item()
    np.testing.assert_allclose(alic.bic, plain.bic[0])
    sizes = np.bincount(alic.label, minlength=alic.k)
    np.testing.assert_allclose(alic.cluster_weight, sizes / NUM)


def test_composites_have_no_channel_and_name_their_layers_once(reference):
    components = (Component("a", 1), Component("b", 2, -1), Component("a", 3))
    neuron = finished(reference, 0, 2, neuron=Neuron(components, "max"))
    (row,) = rows([neuron], reference)
    assert (row.neuron, row.layer, row.channel) == ("max(a:1,-b:2,a:3)", "a,b", None)


def test_parts_of_a_composite_are_kept(reference):
    component = torch.arange(NUM) % 3
    (row,) = rows([finished(reference, 0, 2, component=component)], reference)
    assert row.component.dtype == np.int32
    np.testing.assert_array_equal(row.component, component)


def test_few_valid_images_have_an_interval_but_no_test(reference):
    activations = torch.full((NUM,), torch.nan)
    activations[:3] = 2.0
    (row,) = rows([finished(reference, 0, 1, activations=activations)], reference)
    assert row.p_value is row.separation is None
    assert 0.0 <= row.score_low <= row.score < 0.01
    assert row.score_high == pytest.approx(1 - (1 - row.score) * (3 / 4) ** 2)


def test_weak_sleeping_and_broken_images_are_not_valid(reference):
    activations = torch.full((NUM,), 2.0)
    # The gate lies at half the best gain: 0.5 + 0.5 * (2.0 - 0.5).
    activations[0], activations[1] = 1.24, 1.26
    activations[2] = torch.nan
    inactive = torch.zeros(NUM, dtype=torch.bool)
    inactive[3] = True
    neuron = finished(reference, 0, 2, activations=activations, inactive=inactive)
    (row,) = rows([neuron], reference)
    assert (row.label < 0).tolist() == [True, False, True, True] + [False] * 8
    assert row.status == "ok"
    assert row.k == 2
    # Strengths: 0.76 / 1.5 for the second image, 1 for the eight after the fourth.
    weights = torch.tensor([0.76 / 1.5 + 4, 4.0]).double()
    expected = sorted((weights / weights.sum()).tolist(), reverse=True)
    np.testing.assert_allclose(np.sort(row.cluster_weight)[::-1], expected, rtol=1e-5)

    strict = Scorer(restarts=4, strength=0.6)
    (row,) = rows([neuron], reference, strict)
    assert (row.label < 0).tolist() == [True, True, True, True] + [False] * 8


def test_neurons_without_valid_images_are_dead_or_failed_and_have_no_score(reference):
    inactive = torch.ones(NUM, dtype=torch.bool)
    dead = finished(reference, 0, 2, inactive=inactive, activations=torch.full((NUM,), -1.0))
    failed = finished(reference, 1, 2, activations=torch.full((NUM,), torch.nan))
    fine = finished(reference, 2, 2)
    half = finished(
        reference,
        3,
        2,
        activations=torch.tensor([2.0, torch.nan] * 6),
        inactive=torch.zeros(12) > 0,
    )
    found = rows([dead, failed, fine, half], reference)
    assert [row.status for row in found] == ["dead", "failed", "ok", "ok"]
    for row in found[:2]:
        assert row.score is row.k is row.k_eff is row.score_paper is None
        assert row.score_low is row.score_high is row.p_value is row.separation is None
        assert row.k_stability is row.coverage is None
        assert (row.label == -1).all()
        assert len(row.cluster_weight) == 0
        assert len(row.image) == row.num_images == NUM
    # What is left of it is one of the two facets.
    assert found[3].score < 0.01
    assert (found[3].label >= 0).tolist() == [True, False] * 6


def test_the_papers_score_knows_no_gate(reference):
    activations = torch.full((NUM,), 2.0)
    activations[1::2] = 0.6  # the second facet is too weak for a vote
    (row,) = rows([finished(reference, 4, 2, activations=activations)], reference)
    assert (row.label >= 0).tolist() == [True, False] * 6
    assert row.score < 0.01
    assert row.score_paper > 0.1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_neuron_is_scored_alike_alone_and_in_batch(reference, threads):
    torch.set_num_threads(threads)
    neurons = [
        finished(reference, 0, 3),
        finished(reference, 1, 1, count=5),
        finished(reference, 2, 2, activations=torch.linspace(0.5, 3.0, NUM)),
        finished(reference, 3, 5, count=9),
        finished(reference, 4, 2, activations=torch.full((NUM,), torch.nan)),
        finished(reference, 5, 4, inactive=torch.arange(NUM) % 3 == 0),
        finished(reference, 6, 8),
    ]
    neurons[6].embeddings.copy_(torch.randn(NUM, DIMS))
    together = rows(neurons, reference)
    backwards = rows(neurons[::-1], reference)[::-1]
    for neuron, one, other in zip(neurons, together, backwards, strict=True):
        (alone,) = rows([neuron], reference)
        for row in (other, alone):
            for name, value in vars(one).items():
                np.testing.assert_array_equal(value, getattr(row, name), err_msg=name, strict=False)


def test_padding_does_not_count(reference):
    neuron = finished(reference, 0, 2, count=6)
    (tight,) = rows([neuron], reference, max_images=6)
    (wide,) = rows([neuron], reference, max_images=NUM)
    assert tight.k == wide.k == 2
    assert tight.score == pytest.approx(wide.score, abs=1e-12)
    assert len(wide.label) == len(wide.activation) == len(wide.image) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, r"strength is a part of the median gain in \(0, 1\], not 0.0"),
        ({"strength": 1.5}, "not 1.5"),
        ({"max_clusters": 0}, "at least 1, not 0 and 32"),
        ({"restarts": 0}, "at least 1, not 8 and 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Scorer(**settings)


def test_an_image_whose_view_is_damaged_is_not_valid(reference):
    neuron = finished(reference, 7, 2)
    damaged = neuron.embeddings.clone()
    damaged[1, 3] = torch.nan
    (whole,) = rows([neuron], reference)
    (row,) = rows([dataclasses.replace(neuron, embeddings=damaged)], reference)
    assert row.status == "ok"
    assert (row.label >= 0).tolist() == [i != 1 and v >= 0 for i, v in enumerate(whole.label)]
    none = dataclasses.replace(neuron, embeddings=torch.full_like(damaged, torch.nan))
    (failed,) = rows([none], reference)
    assert (failed.status, failed.score) == ("failed", None)


def test_k_is_what_the_selection_chooses(reference):
    neuron = finished(reference, 7, 3)
    scorer = Scorer(restarts=4, selection="xmeans")
    (row,) = rows([neuron], reference, scorer)
    frame = reference.frame(neuron.embeddings)[None].double()
    expected = cluster(
        frame, valid=torch.ones(1, NUM, dtype=torch.bool), keys=torch.tensor([0]), restarts=4,
        selection="xmeans",
    )  # fmt: skip
    assert row.k == expected.k.item()
    assert scorer.settings()["selection"] == "xmeans"


def test_images_are_told_apart_by_either_view(reference):
    scale = {"conv2": torch.ones(6)}
    both = dataclasses.replace(reference, input_mean=scale, input_std=scale)
    noise = 0.02 * torch.randn(NUM, 5, generator=torch.Generator().manual_seed(2))
    layer_input = torch.eye(5)[torch.arange(NUM) % 2] + noise
    alike = finished(reference, 4, 1)
    unlike = dataclasses.replace(alike, layer_input=layer_input)
    (one,) = rows([alike], both)
    (two,) = rows([unlike], both)
    assert (one.k, two.k) == (1, 2)
    # Two clusters at right angles to one view and alike to the other: half of a half, made exact
    # for so many images.
    assert two.score == pytest.approx(0.25 * NUM / (NUM - 1), abs=0.01)
    assert two.label.tolist() == [two.label[0], two.label[1]] * (NUM // 2)
    np.testing.assert_array_equal(two.layer_input, layer_input.numpy())
    # The paper's score is of what the embedder sees.
    assert one.score_paper == two.score_paper
    # Neurons of other layers beside it, of other widths, change no bit.
    wide = finished(reference, 9, 2, layer_input=torch.randn(NUM, 6))
    again, _, last = rows([unlike, wide, alike], both)
    assert (again.score, last.score) == (two.score, one.score)


def test_images_that_repelled_each_other_leave_less_doubt(reference):
    neuron = finished(reference, 5, 3, activations=torch.linspace(2.0, 3.0, NUM))
    (alone,) = rows([neuron], reference)
    (apart,) = rows([neuron], reference, dataclasses.replace(SCORER, repelled=True))
    assert (apart.score, apart.k_stability) == (alone.score, alone.k_stability)
    assert apart.score - apart.score_low == pytest.approx((alone.score - alone.score_low) / 2)
    assert alone.score_low < apart.score_low < apart.score < apart.score_high <= alone.score_high
    tiny = {"subject": "tiny:subject", "embedder": "tiny:embedder", "image_size": 32}
    assert PolysemanticityModule(**tiny).scorer.repelled
    for independent in ({"repulsion": 0.0}, {"explore": 0.0}):
        assert not PolysemanticityModule(**tiny, **independent).scorer.repelled
