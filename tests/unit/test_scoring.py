import doctest
import math

import pytest
import torch

from polylight.errors import InputError
from polylight.scoring import (
    EffectiveFeatures,
    PaperScore,
    PolysemanticityScore,
    effective_features,
    metrics,
    paper_score,
    polysemanticity_score,
    rao_score,
    relative_strength,
    strength_gate,
)


def angle(degrees):
    c = math.cos(math.radians(degrees))
    return torch.tensor([[[1.0, c], [c, 1.0]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("weights", "similarity", "expected"),
    [
        ([[3.0]], torch.ones(1, 1, 1), 0.0),
        ([[2.0] * 5], torch.eye(5)[None], 0.8),
        ([[1.0] * 20], torch.eye(20)[None], 0.95),
        ([[1.0, 1.0]], angle(30), 0.5 * (1 - math.cos(math.pi / 6))),
        ([[1.0, 1.0]], angle(60), 0.25),
        ([[1.0, 1.0]], angle(180), 0.5),
        ([[9.0, 1.0]], angle(90), 0.18),
        ([[0.99, 0.01, 0.0]], torch.eye(3)[None], 0.0198),
        ([[1.0, 1.0]], torch.ones(1, 2, 2), 0.0),
    ],
)
def test_rao_closed_forms(weights, similarity, expected):
    score = rao_score(torch.tensor(weights), similarity)
    assert score.item() == pytest.approx(expected, abs=1e-7)
    assert effective_features(score).item() == pytest.approx(1 / (1 - expected), rel=1e-6)


def test_rao_correction_removes_the_bias_of_few_images():
    share = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    images = torch.multinomial(share, 20000 * 8, replacement=True, generator=generator)
    counts = torch.nn.functional.one_hot(images.view(20000, 8), 3).sum(1).double()
    similarity = torch.eye(3).expand(20000, 3, 3)
    truth = 1 - share.square().sum().item()
    number = torch.full((20000,), 8)
    plain = 1 - (counts / 8).square().sum(1)
    assert plain.mean().item() == pytest.approx(7 / 8 * truth, abs=0.003)
    corrected = torch.minimum(plain * 8 / 7, 1 - 1 / (counts > 0).sum(1))
    torch.testing.assert_close(rao_score(counts, similarity, number), corrected)
    # Without its bound the estimate is unbiased; the bound costs less than the correction gains.
    assert (plain * 8 / 7).mean().item() == pytest.approx(truth, abs=0.003)
    assert truth - corrected.mean().item() < 0.4 * (truth - plain.mean().item())


def test_rao_of_one_image_is_zero_and_of_none_is_nan():
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    score = rao_score(weights, torch.eye(2).expand(2, 2, 2), torch.tensor([1, 0]))
    assert score[0].item() == 0.0
    assert score[1].isnan()


def test_rao_does_not_see_the_order_of_clusters():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(10, 5, generator=generator, dtype=torch.float64)
    unit = torch.randn(10, 5, 8, generator=generator, dtype=torch.float64)
    unit = torch.nn.functional.normalize(unit, dim=-1)
    order = torch.randperm(5, generator=generator)
    straight = rao_score(weights, unit @ unit.mT)
    shuffled = rao_score(weights[:, order], unit[:, order] @ unit[:, order].mT)
    torch.testing.assert_close(straight, shuffled, rtol=1e-13, atol=1e-13)


def test_paper_score_by_hand():
    # Centroids (3, 0), (0, 1) and (2, 2) from six images: C = 2/5.
    embeddings = [[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [2.0, 2.0], [1.0, 3.0], [3.0, 1.0]]
    labels = torch.tensor([[1, 1, 2, 0, 0, 0]])
    root = 2 * math.sqrt(2)
    pairs = [0.5 * 2 * 1 / 4, 0.25 * 2 * root / (3 + root), 0.25 * 2 * 1 / (1 + root)]
    distance = sum(pairs) / 3
    expected = 0.4 + distance - 0.4 * distance
    votes = torch.ones(1, 6, dtype=torch.bool)
    score = paper_score(torch.tensor([embeddings]), labels, torch.tensor([3]), votes)
    assert score.item() == pytest.approx(expected, rel=1e-12)
    relabelled = (labels + 1) % 3
    again = paper_score(torch.tensor([embeddings]), relabelled, torch.tensor([3]), votes)
    assert again.item() == pytest.approx(expected, rel=1e-12)


def test_paper_score_of_two_right_angles_at_fifty_images():
    embeddings = torch.eye(2).repeat_interleave(25, dim=0)[None]
    labels = torch.arange(2).repeat_interleave(25)[None]
    score = paper_score(embeddings, labels, torch.tensor([2]), torch.ones(1, 50).bool())
    assert score.item() == pytest.approx(1 / 49 + 0.5 - 0.5 / 49, rel=1e-12)


def test_paper_score_where_it_is_undefined():
    embeddings = torch.randn(4, 4, 3, generator=torch.manual_seed(0))
    embeddings[3] = 0.0
    labels = torch.tensor([[0, 0, 0, 0], [0, -1, -1, -1], [-1] * 4, [0, 0, 1, 1]])
    embeddings[1, 1:] = torch.nan
    score = paper_score(embeddings, labels, torch.tensor([1, 1, 1, 2]), labels >= 0)
    assert score[:2].tolist() == [0.0, 0.0]
    assert score[2].isnan()
    assert score[3].item() == pytest.approx(1 / 3)
    embeddings[0, 2, 1] = torch.nan
    score = paper_score(embeddings, labels, torch.tensor([1, 1, 1, 2]), labels >= 0)
    assert score.isnan().tolist() == [True, False, True, False]


def test_relative_strength_is_a_gain_over_the_start():
    activations = torch.tensor([[4.0, 2.0, -1.0, 9.0], [-1.0, -2.0, -4.0, 0.0], [0.0] * 4])
    votes = torch.tensor([[True, True, True, False], [True, True, True, False], [True] * 4])
    plain = relative_strength(activations, votes)
    assert plain.tolist() == [[1.0, 0.5, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
    baseline = torch.tensor([-1.0, -5.0, 0.0])
    gain = relative_strength(activations, votes, baseline)
    assert gain.tolist() == [[1.0, 0.6, 0.0, 0.0], [1.0, 0.75, 0.25, 0.0], [0.0] * 4]


def test_gate_lets_the_strong_vote():
    activations = torch.tensor(
        [
            [10.0, 5.0, 4.9, 20.0],
            [-1.0, -3.0, -3.1, math.nan],
            [0.0, -1.0, -2.0, -3.0],
            [2.0, math.inf, math.nan, 1.0],
        ]
    )
    finished = torch.tensor([[True, True, True, False]] + [[True] * 4] * 3)
    baseline = torch.tensor([0.0, -5.0, 0.0, 0.0])
    votes = strength_gate(activations, finished, baseline)
    assert votes.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False] * 4,
        [True, False, False, True],
    ]
    assert strength_gate(activations, finished, baseline, threshold=0.3)[0].sum() == 3


def modes(counts, dims=12, spread=0.01, seed=0, dtype=torch.float64):
    """Images around axes at right angles, so many of each."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.randn(len(truth), dims, generator=generator, dtype=dtype)
    return (torch.eye(dims, dtype=dtype)[truth] + spread * noise)[None], truth


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((16,), 0.0), ((8, 8), 0.5), ((18, 2), 0.18), ((8, 8, 8, 8), 0.75), ((6, 10, 16), 158 / 256)],
)
def test_score_of_features_at_right_angles(counts, expected):
    embeddings, truth = modes(counts)
    num = len(truth)
    result = polysemanticity_score(5.0 * embeddings)
    corrected = min(1 - 1 / len(counts), expected * num / (num - 1))
    assert result.k.item() == len(counts)
    assert result.score.item() == pytest.approx(corrected, abs=0.01)
    assert result.k_eff.item() == pytest.approx(1 / (1 - result.score.item()))
    shares = sorted((c / num for c in counts), reverse=True) + [0.0] * (8 - len(counts))
    assert result.cluster_weights[0].tolist() == pytest.approx(shares)


def test_score_weighs_clusters_by_activation():
    embeddings, truth = modes((8, 8))
    activations = torch.where(truth == 0, 3.0, 1.0)[None]
    result = polysemanticity_score(embeddings, activations)
    assert sorted(result.cluster_weights[0, :2].tolist()) == pytest.approx([0.25, 0.75])
    strength = torch.where(truth == 0, 1.0, 1.0 / 3.0)
    count = (strength.sum().square() / strength.square().sum()).item()
    expected = 2 * 0.25 * 0.75 * count / (count - 1)
    assert result.score.item() == pytest.approx(expected, abs=0.01)
    shifted = polysemanticity_score(embeddings, activations - 7, baseline=torch.tensor([-7.0]))
    assert shifted.score.item() == pytest.approx(result.score.item(), rel=1e-12)


def test_score_does_not_see_the_order_of_images():
    embeddings, truth = modes((5, 9, 10), spread=0.15)
    activations = 1.0 + torch.rand(1, 24, generator=torch.manual_seed(0))
    order = torch.randperm(24, generator=torch.manual_seed(1))
    straight = polysemanticity_score(embeddings, activations)
    shuffled = polysemanticity_score(embeddings[:, order], activations[:, order])
    assert shuffled.score.item() == pytest.approx(straight.score.item(), rel=1e-12)
    assert len(truth) == straight.labels.shape[1]


def test_score_does_not_see_other_neurons():
    parts = [modes(c, spread=0.2, seed=s)[0] for s, c in enumerate([(24,), (12, 12), (8, 8, 8)])]
    embeddings = torch.cat(parts)
    activations = torch.rand(3, 24, generator=torch.manual_seed(0))
    keys = torch.arange(3)
    together = polysemanticity_score(embeddings, activations, keys=keys)
    for neuron in range(3):
        row = slice(neuron, neuron + 1)
        alone = polysemanticity_score(embeddings[row], activations[row], keys=keys[row])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[neuron], rtol=0, atol=0, equal_nan=True)


def test_float32_gives_the_float64_score():
    embeddings, _ = modes((6, 10), spread=0.1)
    double = polysemanticity_score(embeddings)
    single = polysemanticity_score(embeddings.float())
    assert torch.equal(single.labels, double.labels)
    assert single.score.item() == pytest.approx(double.score.item(), abs=1e-6)


def test_degenerate_neurons_have_a_score_or_nan_but_never_a_crash():
    embeddings = torch.randn(5, 10, 6, generator=torch.manual_seed(0))
    votes = torch.ones(5, 10, dtype=torch.bool)
    votes[0] = False
    votes[1, 1:] = False
    embeddings[1, 1:] = torch.nan
    embeddings[2] = embeddings[2, 0]
    embeddings[3] = 0.0
    activations = torch.ones(5, 10)
    activations[4] = -1.0
    result = polysemanticity_score(embeddings, activations, votes=votes)
    assert result.score[1:4].tolist() == [0.0, 0.0, 0.0]
    assert result.score[[0, 4]].isnan().all()
    assert result.k[:4].tolist() == [1, 1, 1, 1]
    assert result.labels.min() == -1


def test_nan_without_a_vote_does_not_leak_and_with_a_vote_shows():
    embeddings, _ = modes((8, 8), spread=0.1)
    activations = torch.ones(1, 16)
    votes = torch.arange(16)[None] < 14
    clean = polysemanticity_score(embeddings, activations, votes=votes)
    embeddings[0, 15] = torch.nan
    activations[0, 15] = torch.nan
    poisoned = polysemanticity_score(embeddings, activations, votes=votes)
    for a, b in zip(poisoned, clean, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    embeddings[0, 3] = torch.nan
    assert polysemanticity_score(embeddings, activations, votes=votes).score.isnan().all()


@pytest.mark.parametrize("strong", [False, True])
def test_metrics_are_the_functions_of_all_batches(strong):
    embeddings, _ = modes((5, 9, 10), spread=0.15)
    activations = 1.0 + torch.rand(24, generator=torch.manual_seed(0)) if strong else None
    expected = polysemanticity_score(embeddings, None if activations is None else activations[None])
    for metric, value in (
        (PolysemanticityScore(), expected.score),
        (EffectiveFeatures(), expected.k_eff),
    ):
        for part in range(0, 24, 8):
            rows = slice(part, part + 8)
            metric.update(embeddings[0, rows], None if activations is None else activations[rows])
        assert metric.compute().shape == ()
        assert metric.compute().item() == pytest.approx(value.item(), rel=1e-12)
        metric.reset()
        metric.update(embeddings[0, 5:8])
        assert metric.compute().item() == (0.0 if isinstance(metric, PolysemanticityScore) else 1.0)


def test_paper_metric_is_the_function_of_all_batches():
    embeddings, truth = modes((6, 8, 10), spread=0.01)
    metric = PaperScore()
    metric.update(embeddings[0, :11])
    metric.update(embeddings[0, 11:])
    votes = torch.ones(1, 24, dtype=torch.bool)
    expected = paper_score(embeddings, truth[None], torch.tensor([3]), votes)
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-12)


def test_docstring_examples():
    result = doctest.testmod(metrics)
    assert result.attempted >= 12
    assert result.failed == 0


def wrong_calls():
    points, line = torch.zeros(2, 4, 3), torch.zeros(2, 4)
    yes = torch.ones(2, 4, dtype=torch.bool)
    return [
        (lambda: rao_score(line, points), r"\[2, 4\] and \[2, 4, 3\]"),
        (lambda: paper_score(points, line.long(), line[:, 0].long(), yes[:1]), r"\[1, 4\]"),
        (lambda: polysemanticity_score(line), r"batch of one: embeddings\[None\]"),
        (lambda: relative_strength(line, yes[:1]), r"same shape, got \[2, 4\] and torch.bool"),
        (lambda: relative_strength(line, yes, line), r"baseline must be \[2\]"),
        (lambda: strength_gate(line, yes, threshold=0.0), r"\(0, 1\].*got 0.0"),
        (lambda: strength_gate(line, line), r"finished must be bool \[2, 4\].*float32"),
        (lambda: PolysemanticityScore().update(points), r"\[images, dimensions\]"),
        (lambda: PolysemanticityScore().update(line, line[0]), r"must be \[2\].*got \[4\]"),
    ]


@pytest.mark.parametrize(("call", "message"), wrong_calls())
def test_errors_name_what_came(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_activations_come_always_or_never():
    for first, second in ((torch.ones(2), None), (None, torch.ones(2))):
        metric = PolysemanticityScore()
        metric.update(torch.eye(2), first)
        with pytest.raises(InputError, match="every update or with none"):
            metric.update(torch.eye(2), second)
