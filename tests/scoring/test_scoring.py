import doctest
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.cluster import KMeans

from polylight.clustering import cluster, gap_statistic
from polylight.errors import InputError
from polylight.scoring import (
    EffectiveFeatures,
    PaperScore,
    PolysemanticityScore,
    effective_features,
    metrics,
    multimodality,
    paper_score,
    partition_score,
    polysemanticity_score,
    rao_score,
    relative_strength,
    strength_gate,
    weighted_score,
)
from polylight.scoring.score import score_clusters


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
    valid = torch.ones(1, 6, dtype=torch.bool)
    score = paper_score(torch.tensor([embeddings]), labels, torch.tensor([3]), valid)
    assert score.item() == pytest.approx(expected, rel=1e-12)
    relabelled = (labels + 1) % 3
    again = paper_score(torch.tensor([embeddings]), relabelled, torch.tensor([3]), valid)
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
    valid = torch.tensor([[True, True, True, False], [True, True, True, False], [True] * 4])
    plain = relative_strength(activations, valid)
    assert plain.tolist() == [[1.0, 0.5, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
    baseline = torch.tensor([-1.0, -5.0, 0.0])
    gain = relative_strength(activations, valid, baseline)
    assert gain.tolist() == [[1.0, 0.6, 0.0, 0.0], [1.0, 0.75, 0.25, 0.0], [0.0] * 4]


def test_gate_lets_vote_what_drives_as_much_as_the_others():
    activations = torch.tensor(
        [
            [10.0, 9.0, 4.4, 20.0],
            [-1.0, -3.0, -4.1, math.nan],
            [0.0, -1.0, -2.0, -3.0],
            [2.0, math.inf, math.nan, 1.0],
        ]
    )
    finished = torch.tensor([[True, True, True, False]] + [[True] * 4] * 3)
    baseline = torch.tensor([0.0, -5.0, 0.0, 0.0])
    valid = strength_gate(activations, finished, baseline)
    assert valid.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False] * 4,
        [True, False, False, True],
    ]
    assert strength_gate(activations, finished, baseline, threshold=0.3)[0].sum() == 3


def test_one_outlier_silences_nobody_and_failures_change_no_vote():
    usual = [5.0, 6.0, 7.0, 8.0]
    rows = [[0.0, *usual, 100.0], [0.0, *usual, 2.0]]
    valid = strength_gate(torch.tensor(rows), torch.ones(2, 6, dtype=torch.bool))
    assert valid.tolist() == [[False] + [True] * 5, [False] + [True] * 4 + [False]]
    # Most ascents gained nothing: the rest is held against the rest.
    failed = torch.tensor([[*usual, 1.0] + [-1.0] * 20])
    valid = strength_gate(failed, torch.ones_like(failed, dtype=torch.bool))
    assert valid[0].tolist() == [True] * 4 + [False] * 21


@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_gate_is_that_of_the_median(threshold, size):
    generator = np.random.default_rng(size)
    activations, baseline = generator.normal(size=(9, size)), generator.normal(size=9)
    exists = generator.random((9, size)) < 0.8
    valid = strength_gate(
        *map(torch.from_numpy, (activations, exists, baseline)), threshold=threshold
    )
    for row in range(9):
        gain = np.where(exists[row], activations[row] - baseline[row], 0.0)
        gained = gain[gain > 0]
        least = threshold * np.median(gained) if len(gained) else math.inf
        assert valid[row].tolist() == [bool(g > 0 and g >= least) for g in gain]


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


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((16,), 0.0),
        ((8, 8), 0.5),
        ((12, 4), 2 * 0.75 * 0.25 * 16 / 15),
        ((18, 2), 2 * 0.9 * 0.1 * 20 / 19),
        ((6, 10, 16), (1 - (36 + 100 + 256) / 1024) * 32 / 31),
        ((8, 8, 8, 8), 0.75),
    ],
)
def test_score_of_exact_duplicates_is_its_closed_form(counts, expected):
    embeddings, _ = modes(counts, spread=0.0)
    result = polysemanticity_score(embeddings)
    assert result.k.item() == len(counts)
    assert result.score.item() == pytest.approx(expected, abs=1e-12)
    if len(counts) == 1:
        assert result.separation.isnan()
        assert result.p_value.item() == 1.0
    else:
        assert result.separation > 40.0
        assert result.p_value.item() == 1 / 201


def test_evidence_is_a_logistic_function_with_even_odds_at_four():
    separation = torch.linspace(-20.0, 30.0, 101, dtype=torch.float64)
    expected = expit(separation.numpy() - 4.0)
    np.testing.assert_allclose(multimodality(separation), expected, rtol=1e-13)
    known = torch.tensor([4.0, math.nan, math.inf, -math.inf, 4.0 + math.log(9.0)]).double()
    assert multimodality(known).tolist() == pytest.approx([0.5, 0.0, 1.0, 0.0, 0.9], abs=1e-7)
    # In any place and company.
    many = multimodality(torch.full((3, 37), 5.3, dtype=torch.float64))
    assert (many == multimodality(torch.tensor(5.3, dtype=torch.float64))).all()


def test_without_evidence_a_quarter_of_the_spread_counts():
    separation = torch.tensor([4.0, math.nan, math.inf, -math.inf]).double()
    clustered_score = torch.tensor([0.8, 0.5, 0.75, 0.25]).double()
    spread = torch.tensor([0.4, 0.6, 0.1, 1.0]).double()
    expected = [0.45, 0.15, 0.75, 0.25]
    assert weighted_score(clustered_score, spread, separation).tolist() == pytest.approx(expected)


def partition_by_hand(rows, strength):
    """Score and shares of the K = 3 of sklearn, in numpy."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    labels = KMeans(3, n_init=20, tol=0, random_state=0).fit(rows).labels_
    share = np.array([strength[labels == c].sum() for c in range(3)]) / strength.sum()
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    count = strength.sum() ** 2 / (strength**2).sum()
    plain = 1 - share @ np.maximum(means @ means.T, 0.0) @ share
    return min(plain * count / (count - 1), 2 / 3), share


@pytest.mark.parametrize("strong", [False, True])
def test_partition_score_against_sklearn(strong):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 3, 12, generator=generator, dtype=torch.float64)
    points = torch.nn.functional.normalize(centres, dim=-1)[:, torch.arange(30) % 3]
    points += 0.1 * torch.randn(4, 30, 12, generator=generator, dtype=torch.float64)
    activations = torch.rand(4, 30, generator=generator, dtype=torch.float64) - 2.0
    baseline = torch.tensor([-2.5, -3.0, -2.1, -9.0], dtype=torch.float64)
    valid = torch.rand(4, 30, generator=generator) < 0.8
    keys = torch.arange(4)
    given = {"valid": valid, "keys": keys, "baseline": baseline if strong else None}
    found = partition_score(7.0 * points, activations if strong else None, **given)
    whole = polysemanticity_score(points, activations if strong else None, **given)
    assert found.k.tolist() == [3] * 4
    for neuron, own in enumerate(valid):
        strength = (activations - baseline[:, None])[neuron, own].numpy() if strong else np.ones(30)
        score, share = partition_by_hand(points[neuron, own].numpy(), strength[: own.sum()])
        assert found.score[neuron].item() == pytest.approx(score, rel=1e-12)
        weights = found.weights[neuron]
        np.testing.assert_allclose(weights[:3].sort().values, np.sort(share), rtol=1e-12)
        assert (weights[3:] == 0).all()
    # So many images in clear clusters leave hardly a doubt about them.
    torch.testing.assert_close(whole.score, found.score, rtol=1e-2, atol=0)
    assert torch.equal(whole.labels, found.labels)
    assert torch.equal(whole.cluster_weights, found.weights)


def test_partition_is_the_clustering_of_the_best_k_from_k_min_on():
    parts = [modes(c, spread=0.2, seed=s)[0] for s, c in enumerate([(24,), (12, 12), (8, 8, 8)])]
    embeddings = torch.nn.functional.normalize(torch.cat(parts), dim=-1)
    valid = torch.arange(24).expand(3, 24) < torch.tensor([24, 3, 24])[:, None]
    keys = torch.arange(3)
    for k_min, k_max in ((1, 8), (2, 8), (3, 4), (2, 1)):
        found = partition_score(embeddings, None, valid=valid, keys=keys, k_min=k_min, k_max=k_max)
        expected = cluster(embeddings, valid=valid, keys=keys, k_min=min(k_min, k_max), k_max=k_max)
        assert torch.equal(found.k, expected.k)
        assert torch.equal(found.labels, expected.labels)
        torch.testing.assert_close(found.bic, expected.bic, rtol=1e-11, atol=0, equal_nan=True)
        least = 1 if k_max == 1 else k_min
        assert (found.k[[0, 2]] >= least).all()
        # Three images have no two clusters of two.
        assert found.k[1] == 1
        one = found.k == 1
        assert torch.equal(found.score[one], 0.25 * found.mean_distance[one])
        assert one.all() == (k_max == 1)


def pair_distance(rows, strength):
    """Weighted mean cosine distance of two of some rows, pair by pair."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = list(combinations(range(len(rows)), 2))
    weights = [strength[i] * strength[j] for i, j in pairs]
    return np.average([1 - rows[i] @ rows[j] for i, j in pairs], weights=weights)


def test_spread_is_the_mean_distance_of_two_images():
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(7, 12, 5, generator=generator, dtype=torch.float64) + 1.0
    points[2] = 3.0 * points[2, 0]
    activations = torch.rand(7, 12, generator=generator, dtype=torch.float64) - 0.2
    valid = torch.arange(12) < torch.tensor([12, 9, 12, 2, 1, 0, 12])[:, None]
    # Opposite to each other: farther than what is unrelated, but no more than 1 counts.
    points[3, 1] = -points[3, 0]
    points[6, 6] = torch.nan
    valid[6, 6] = False
    points[1, 9:] = torch.inf
    keys = torch.arange(7)
    baseline = torch.full((7,), -0.3, dtype=torch.float64)
    for given in ({"activations": None}, {"activations": activations, "baseline": baseline}):
        found = partition_score(points, valid=valid, keys=keys, **given).mean_distance
        strength = np.ones((7, 12)) if given["activations"] is None else activations.numpy() + 0.3
        for neuron in (0, 1, 6):
            own = valid[neuron].numpy()
            expected = pair_distance(points[neuron].numpy()[own], strength[neuron, own])
            assert found[neuron].item() == pytest.approx(expected, rel=1e-12)
        assert found[[2, 3, 4]].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-15)
        assert found[5].isnan()


def test_one_feature_scores_a_quarter_of_its_spread_and_k_is_that_of_the_likelier_case():
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.02, 0.5, 24, dtype=torch.float64)[:, None, None]
    noise = torch.randn(24, 14, 10, generator=generator, dtype=torch.float64)
    embeddings = torch.eye(10, dtype=torch.float64)[torch.arange(14) % 2] + spread * noise
    embeddings[3] = embeddings[3, 0]
    activations = 1.0 + torch.rand(24, 14, generator=generator, dtype=torch.float64)
    valid = torch.arange(14) < torch.tensor([14, 9, 14, 14, 3, 0] + [14] * 18)[:, None]
    keys = torch.arange(24)
    result = polysemanticity_score(embeddings, activations, valid=valid, keys=keys)
    directions = torch.nn.functional.normalize(embeddings, dim=-1)
    test = gap_statistic(directions, valid, keys)
    cut = partition_score(embeddings, activations, valid=valid, keys=keys)
    separation = [
        gaps[: max(k - 1, 1)].mean().item()
        for gaps, k in zip(test.gaps, cut.k.tolist(), strict=True)
    ]
    np.testing.assert_allclose(result.separation, separation, rtol=1e-9)
    torch.testing.assert_close(result.p_value, test.p_value, equal_nan=True)
    evidence = np.nan_to_num(expit(np.array(separation) - 4.0))
    expected = cut.score.numpy() * evidence + cut.mean_distance.numpy() / 4 * (1 - evidence)
    np.testing.assert_allclose(result.score, expected, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(result.clustered_score, cut.score, rtol=1e-9, atol=0, equal_nan=True)
    torch.testing.assert_close(
        result.mean_distance, cut.mean_distance, rtol=1e-9, atol=1e-15, equal_nan=True
    )
    several = result.separation > 4.0
    assert 4 < several.sum() < 20
    assert torch.equal(result.k[several], cut.k[several])
    assert torch.equal(result.labels[several], cut.labels[several])
    assert torch.equal(result.cluster_weights[several], cut.weights[several])
    assert (cut.k[~several] > 1).any()
    assert (result.k[~several] == 1).all()
    assert torch.equal(result.labels[~several] == 0, valid[~several])
    assert torch.equal(result.labels >= 0, valid)
    one = ~several & valid.any(1)
    assert (result.cluster_weights[one] == torch.eye(8)[0]).all()
    assert result.cluster_weights[5].isnan().all()
    torch.testing.assert_close(result.bic, cut.bic, rtol=1e-11, atol=0, equal_nan=True)
    torch.testing.assert_close(result.k_eff, 1 / (1 - result.score), equal_nan=True)


@pytest.mark.parametrize("selection", ["bic", "xmeans", "gmeans", "sigclust"])
@pytest.mark.parametrize("images", [5, 9])
def test_whatever_chooses_k_there_is_a_gap_for_it(selection, images):
    generator = torch.Generator().manual_seed(images)
    kind = torch.randint(0, 5, (60, images), generator=generator)
    noise = torch.randn(60, images, 16, generator=generator, dtype=torch.float64)
    valid = torch.rand(60, images, generator=generator) < 0.8
    result = polysemanticity_score(
        torch.eye(16, dtype=torch.float64)[kind] + 0.05 * noise,
        valid=valid,
        keys=torch.arange(60),
        selection=selection,
        restarts=4,
    )
    tested = valid.sum(1) >= 4
    assert tested.sum() > 30
    assert torch.equal(~result.separation.isnan(), tested)
    assert (result.k[tested] <= valid.sum(1)[tested] // 2).all()


@pytest.mark.parametrize("images", [16, 32, 64])
@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_one_gaussian_mode_scores_next_to_nothing_and_points_all_around_as_two_clusters_may(
    images, offset
):
    generator = torch.Generator().manual_seed(images)
    points = torch.randn(20, images, 64, generator=generator, dtype=torch.float64)
    points += offset * torch.randn(20, 1, 64, generator=generator, dtype=torch.float64)
    result = polysemanticity_score(points, keys=torch.arange(20), restarts=4)
    # Points in all directions have no feature in common, and each is as far as can be from others.
    assert result.score.mean() < (0.05 if offset else 0.3)
    assert (result.k == 1).double().mean() >= 0.95


@pytest.mark.parametrize("images", [16, 32, 64])
def test_three_clear_modes_score_two_thirds(images):
    generator = torch.Generator().manual_seed(images)
    noise = torch.randn(20, images, 64, generator=generator, dtype=torch.float64)
    points = torch.eye(64, dtype=torch.float64)[torch.arange(images) % 3] + 0.05 * noise
    result = polysemanticity_score(points, keys=torch.arange(20), restarts=4)
    assert (result.k == 3).all()
    # Sixteen images in 64 dimensions leave some doubt.
    error = 0.03 if images == 16 else 0.005
    torch.testing.assert_close(
        result.score, torch.full_like(result.score, 2 / 3), rtol=0, atol=error
    )


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
    valid = torch.ones(5, 10, dtype=torch.bool)
    valid[0] = False
    valid[1, 1:] = False
    embeddings[1, 1:] = torch.nan
    embeddings[2] = embeddings[2, 0]
    embeddings[3] = 0.0
    activations = torch.ones(5, 10)
    activations[4] = -1.0
    result = polysemanticity_score(embeddings, activations, valid=valid)
    # What has no direction is unlike all others.
    assert result.score[1:4].tolist() == pytest.approx([0.0, 0.0, 0.25], abs=1e-12)
    assert result.score[[0, 4]].isnan().all()
    assert result.k[:4].tolist() == [1, 1, 1, 1]
    assert result.labels.min() == -1
    assert result.cluster_weights[1:4, 0].tolist() == [1.0, 1.0, 1.0]
    assert result.cluster_weights[[0, 4]].isnan().all()
    assert result.separation[:4].isnan().all()
    assert result.p_value[[0, 1]].isnan().all()
    # All images are the same, in the middle of nowhere or elsewhere.
    assert result.p_value[2:4].tolist() == [1.0, 1.0]


def test_nan_of_an_invalid_image_does_not_leak_and_of_a_valid_image_is_refused():
    embeddings, _ = modes((8, 8), spread=0.1)
    activations = torch.ones(1, 16)
    valid = torch.arange(16)[None] < 14
    clean = polysemanticity_score(embeddings, activations, valid=valid)
    embeddings[0, 15] = torch.nan
    activations[0, 15] = torch.nan
    poisoned = polysemanticity_score(embeddings, activations, valid=valid)
    for a, b in zip(poisoned, clean, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    embeddings[0, 3] = torch.nan
    with pytest.raises(InputError, match=r"embeddings of 1 of 14 images are NaN"):
        polysemanticity_score(embeddings, activations, valid=valid)
    # Where several neurons are compared, such as in a table, it is that neuron's alone.
    keys = torch.zeros(1, dtype=torch.int64)
    found = score_clusters(embeddings, activations, valid=valid, keys=keys, baseline=None)
    assert found.score.isnan().all()


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
        few = polysemanticity_score(embeddings[:, 5:8])
        value = few.score if isinstance(metric, PolysemanticityScore) else few.k_eff
        assert metric.compute().item() == pytest.approx(value.item(), rel=1e-12)


def test_paper_metric_is_the_function_of_all_batches():
    embeddings, truth = modes((6, 8, 10), spread=0.01)
    metric = PaperScore()
    metric.update(embeddings[0, :11])
    metric.update(embeddings[0, 11:])
    valid = torch.ones(1, 24, dtype=torch.bool)
    expected = paper_score(embeddings, truth[None], torch.tensor([3]), valid)
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
        (lambda: strength_gate(line[0], yes[0]), r"activations must be \[neurons, images\], got"),
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
