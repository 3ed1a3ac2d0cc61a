import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import sklearn.metrics
import torch
from scipy.special import expit
from sklearn.cluster import KMeans
from torch.nn import functional as F
from torchmetrics import MetricCollection

from polylight.clustering import cluster, two_means
from polylight.errors import InputError
from polylight.scoring import (
    EffectiveFeatures,
    PaperScore,
    PolysemanticityScore,
    cluster_similarity,
    leinster_cobbold_score,
    mean_distance_score,
    paper_score,
    partition_score,
    polysemanticity_score,
    rao_score,
    score_table,
    semanticlens_score,
    silhouette_score,
    vendi_score,
    weighted_ms_score,
)

NAMES = (
    "polylight",
    "clustered",
    "clustered_times_weight",
    "bic_alone",
    "xmeans",
    "gmeans",
    "sigclust",
    "paper",
    "mean_distance",
    "semanticlens",
    "weighted_ms",
    "leinster_cobbold_0",
    "leinster_cobbold_1",
    "leinster_cobbold_2",
    "vendi",
    "silhouette_2",
)


def batch(num=6, images=20, dims=7, seed=0, share_valid=0.8):
    """Neurons of one to three features, images where invalid among the others."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.4 * torch.randn(num, images, dims, generator=generator, dtype=torch.float64)
    centres = torch.randn(num, 3, dims, generator=generator, dtype=torch.float64)
    feature = torch.arange(images) % (1 + torch.arange(num)[:, None] % 3)
    points = noise + centres.take_along_dim(feature[..., None], 1)
    activations = 1.0 + torch.rand(num, images, generator=generator, dtype=torch.float64)
    valid = torch.rand(num, images, generator=generator) < share_valid
    return points, activations, valid, 1000 + torch.arange(num)


def table(points, activations, valid, keys, **settings):
    return score_table(points, points.exp(), activations, valid, keys, **settings)


def axes(*counts):
    """Images on axes at right angles, so many on each, as a batch of one."""
    return torch.eye(8).repeat_interleave(torch.tensor([*counts, *[0] * (8 - len(counts))]), dim=0)


def everyone(points):
    return torch.ones(points.shape[:2], dtype=torch.bool)


def each(points, valid):
    """The valid images of each neuron, in numpy."""
    return [p[v].numpy() for p, v in zip(points, valid, strict=True)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def diversity(share, alike, order):
    """D_q from its definition, term by term."""
    common = [sum(alike[i][j] * share[j] for j in range(len(share))) for i in range(len(share))]
    if order == 1:
        return math.exp(-sum(p * math.log(c) for p, c in zip(share, common, strict=True)))
    total = sum(p * c ** (order - 1) for p, c in zip(share, common, strict=True))
    return total ** (1 / (1 - order))


@pytest.mark.parametrize("order", [0, 0.5, 1, 1.5, 2, 7])
def test_leinster_cobbold_against_its_definition(order):
    points, weights, valid, _ = batch()
    weights = weights.masked_fill(~valid, 0.0)
    directions = F.normalize(points, dim=-1)
    found = leinster_cobbold_score(weights, directions @ directions.mT, order)
    for neuron, rows in enumerate(each(points, valid)):
        share = weights[neuron, valid[neuron]].numpy()
        alike = np.maximum(unit(rows) @ unit(rows).T, 0.0)
        expected = 1 - 1 / diversity(share / share.sum(), alike, order)
        assert found[neuron].item() == pytest.approx(expected, rel=1e-12)


def test_leinster_cobbold_closed_forms():
    weights = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    right = torch.eye(3)[None]
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    for order, expected in (
        (0, 0.5),
        (1, 1 - math.exp(-entropy)),
        (2, 0.18),
        (300, 1 - 0.9 ** (300 / 299)),
        (math.inf, 0.1),
    ):
        score = leinster_cobbold_score(weights, right, order)
        assert score.item() == pytest.approx(expected, rel=1e-12)
    # Of many equal features no power may vanish.
    many = leinster_cobbold_score(torch.ones(1, 1000), torch.eye(1000)[None], 200)
    assert many.item() == pytest.approx(0.999, rel=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2, math.inf])
def test_leinster_cobbold_does_not_see_a_split_of_one_feature(order):
    whole = leinster_cobbold_score(torch.tensor([[3.0, 1.0]]), torch.eye(2)[None], order)
    same = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    split = leinster_cobbold_score(torch.tensor([[1.0, 2.0, 1.0]]), same, order)
    assert split.item() == pytest.approx(whole.item(), rel=1e-12)
    one = leinster_cobbold_score(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.ones(2, 2, 2), order)
    assert one[0].item() == 0.0
    assert one[1].isnan()


def test_leinster_cobbold_of_order_two_is_rao():
    points, weights, _, _ = batch()
    directions = F.normalize(points, dim=-1)
    similarity = directions @ directions.mT
    share = weights / weights.sum(1, keepdim=True)
    quadratic = torch.einsum("ui,uij,uj->u", share, similarity.clamp_min(0.0), share)
    found = leinster_cobbold_score(weights, similarity, 2)
    torch.testing.assert_close(found, 1 - quadratic, rtol=1e-13, atol=0)
    assert torch.equal(found, rao_score(weights, similarity))


def test_mean_distance_against_all_pairs():
    points, _, valid, _ = batch()
    found = mean_distance_score(3.0 * points, valid)
    for neuron, rows in enumerate(each(points, valid)):
        cosine = sklearn.metrics.pairwise.cosine_similarity(rows)
        expected = 1 - np.mean([cosine[p] for p in itertools.combinations(range(len(rows)), 2)])
        assert found[neuron].item() == pytest.approx(expected, rel=1e-12)


def test_weighted_ms_against_all_pairs():
    points, activations, valid, _ = batch()
    found = weighted_ms_score(points, activations - 7.0, valid)
    for neuron, rows in enumerate(each(points, valid)):
        cosine = sklearn.metrics.pairwise.cosine_similarity(rows)
        strength = activations[neuron, valid[neuron]].numpy()
        strength = (strength - strength.min()) / (strength.max() - strength.min())
        pairs = list(itertools.combinations(range(len(rows)), 2))
        weight = np.array([strength[i] * strength[j] for i, j in pairs])
        expected = 1 - weight @ np.array([cosine[p] for p in pairs]) / weight.sum()
        assert found[neuron].item() == pytest.approx(expected, rel=1e-12)


def test_weighted_ms_has_no_weight_for_the_weakest_image():
    points = axes(1, 1, 1)[None]
    points[0, 2, 0] = 1.0
    # The pair of 0.5 and 1 is all that counts, at 45 degrees.
    score = weighted_ms_score(points, torch.tensor([[3.0, 1.0, 2.0]]), everyone(points))
    assert score.item() == pytest.approx(1 - math.sqrt(0.5), rel=1e-6)
    for activations in ([2.0, 2.0, 2.0], [1.0, 1.0, 5.0]):
        assert weighted_ms_score(points, torch.tensor([activations]), everyone(points)).isnan()


def test_vendi_against_scipy():
    points, _, valid, _ = batch(dims=30)
    points[1::2, :, 5:] = 0.0  # of rank below the number of images
    found = vendi_score(points, valid)
    for neuron, rows in enumerate(each(points, valid)):
        eigenvalues = scipy.linalg.eigvalsh(unit(rows) @ unit(rows).T / len(rows))
        eigenvalues = eigenvalues[eigenvalues > 1e-14]
        expected = 1 - math.exp(np.sum(eigenvalues * np.log(eigenvalues)))
        assert found[neuron].item() == pytest.approx(expected, rel=1e-11)


def test_two_means_is_at_least_as_good_as_sklearn():
    points, _, valid, keys = batch(num=30, dims=4)
    labels = two_means(points, valid, keys)
    assert torch.equal(labels >= 0, valid)
    for neuron, rows in enumerate(each(points, valid)):
        reference = KMeans(2, n_init=10, tol=0, random_state=neuron).fit(rows).inertia_
        halves = [rows[labels[neuron, valid[neuron]].numpy() == c] for c in (0, 1)]
        assert min(map(len, halves)) >= 1
        assert sum(((h - h.mean(0)) ** 2).sum() for h in halves) <= reference * (1 + 1e-12)


def test_two_means_is_the_two_of_cluster():
    points, truth = axes(9, 5)[None], torch.arange(2).repeat_interleave(torch.tensor([9, 5]))
    found = cluster(points, valid=everyone(points), keys=torch.zeros(1).long())
    assert found.k.item() == 2
    labels = two_means(points, everyone(points), torch.zeros(1).long())[0]
    assert labels.tolist() in (truth.tolist(), (1 - truth).tolist())


@pytest.mark.parametrize("width", [1, 2, 3, 6])
def test_two_means_of_few_images(width):
    points = torch.randn(5, width, 3, generator=torch.manual_seed(0))
    valid = torch.arange(width) < torch.arange(5)[:, None]
    labels = two_means(points, valid, torch.arange(5))
    assert torch.equal(labels >= 0, valid)
    assert (labels[:4] <= 0).all()
    assert set(labels[4].tolist()) == ({0} if width < 4 else {-1, 0, 1})


def test_two_means_of_the_plain_kernels():
    points, _, valid, keys = batch(num=8)
    parts = [two_means(points, valid, keys, 32, kernels) for kernels in ("auto", "torch")]
    fast, plain = (labels[:, :, None] == labels[:, None] for labels in parts)
    assert torch.equal(fast, plain)


def clarity(rows):
    """Of SemanticLens, as it is described: of rows [n, D] in torch."""
    mean = F.normalize(rows, dim=-1).mean(0)
    return len(rows) / (len(rows) - 1) * (mean.square().sum() - 1 / len(rows))


def test_semanticlens_against_its_description():
    points, activations, valid, keys = batch(num=24, images=40)
    found = semanticlens_score(points, two_means(points, valid, keys), valid, activations)
    neurons = list(enumerate(each(points, valid)))
    # One cloud can be halved in many ways that are nearly as good.
    for neuron, rows in neurons[1::3] + neurons[2::3]:
        model = KMeans(2, n_init=10, tol=0, random_state=neuron).fit(rows)
        assert np.bincount(model.labels_).min() >= 2
        expected = 1 - clarity(torch.tensor(model.cluster_centers_)).item()
        assert found[neuron].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("known", [False, True])
def test_semanticlens_without_two_clusters(known):
    generator = torch.Generator().manual_seed(0)
    points = 1.0 + 0.1 * torch.randn(1, 25, 4, generator=generator, dtype=torch.float64)
    points[0, 20] = torch.tensor([-9.0, 9.0, -9.0, 9.0])
    activations = torch.rand(1, 25, generator=generator)
    valid = everyone(points)
    valid[0, 3] = False
    labels = two_means(points, valid, torch.zeros(1).long())
    assert sorted((labels == c).sum().item() for c in (0, 1)) == [1, 23]
    rows = points[0, valid[0]]
    taken = activations[0, valid[0]].argsort(descending=True) if known else torch.arange(24)
    mean = rows.mean(0)
    expected = 1 - torch.stack([clarity(torch.stack([mean, rows[i]])) for i in taken[:10]]).mean()
    found = semanticlens_score(points, labels, valid, activations if known else None)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_silhouette_against_sklearn():
    points, _, valid, keys = batch(num=12)
    directions = F.normalize(points, dim=-1)
    labels = two_means(directions, valid, keys)
    scattered = torch.where(valid, torch.arange(20) % 2, -1)
    alone = torch.where(valid, (valid.cumsum(1) == 1).long(), -1)
    for given in (labels, scattered, alone):
        found = silhouette_score(3.0 * points, given, valid)
        for neuron, rows in enumerate(each(points, valid)):
            chosen = given[neuron, valid[neuron]].numpy()
            expected = sklearn.metrics.silhouette_score(unit(rows), chosen)
            assert found[neuron].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # One feature, seen sixteen times over: nothing is diverse.
        ((16,), dict.fromkeys(NAMES, 0.0)),
        (
            (8, 8),
            {
                "polylight": 0.5,
                "clustered": 0.5,
                "clustered_times_weight": 0.5,
                "bic_alone": 0.5,
                "paper": 1 / 15 + 0.5 - 0.5 / 15,
                "mean_distance": 8 / 15,
                "semanticlens": 1.0,
                "leinster_cobbold_0": 0.5,
                "leinster_cobbold_1": 0.5,
                "leinster_cobbold_2": 0.5,
                "vendi": 0.5,
                "silhouette_2": 1.0,
            },
        ),
        (
            (12, 4),
            {
                "polylight": 0.4,
                "clustered": 0.4,
                "clustered_times_weight": 0.4,
                "bic_alone": 0.4,
                "mean_distance": 0.4,
                "semanticlens": 1.0,
                "leinster_cobbold_0": 0.5,
                "leinster_cobbold_1": 1 - 0.75**0.75 * 0.25**0.25,
                "leinster_cobbold_2": 0.375,
                "vendi": 1 - 0.75**0.75 * 0.25**0.25,
                "silhouette_2": 1.0,
            },
        ),
        (
            (4, 4, 4, 4),
            {
                "polylight": 0.75,
                "clustered": 0.75,
                "clustered_times_weight": 0.75,
                "bic_alone": 0.75,
                "mean_distance": 12 / 15,
                "leinster_cobbold_0": 0.75,
                "leinster_cobbold_1": 0.75,
                "leinster_cobbold_2": 0.75,
                "vendi": 0.75,
            },
        ),
    ],
)
def test_scores_of_duplicates_at_right_angles(counts, expected):
    points = axes(*counts)[None]
    # So near to each other that they count alike, yet not the same.
    activations = 1.0 + 1e-9 * torch.arange(16, dtype=torch.float64)[None]
    keys = torch.zeros(1, dtype=torch.int64)
    found = score_table(points, points, activations, everyone(points), keys)
    assert tuple(found) == NAMES
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-8), name


def test_scores_of_few_valid_images_are_nan_or_zero():
    points = torch.randn(5, 6, 3, generator=torch.manual_seed(0), dtype=torch.float64)
    points[2] = points[2, 0]
    activations = 1.0 + torch.arange(6.0).expand(5, 6)
    valid = torch.arange(6) < torch.arange(5)[:, None]
    found = table(points, activations, valid, torch.arange(5))
    least = dict.fromkeys(NAMES, 1)
    least |= {"mean_distance": 2, "semanticlens": 2, "weighted_ms": 3, "silhouette_2": 4}
    for name, score in found.items():
        assert score.dtype == torch.float64
        assert (~score.isnan()).tolist() == [n >= least[name] for n in range(5)], name
        # One image, and two that are the same.
        assert score[1:3].nan_to_num().tolist() == pytest.approx([0.0, 0.0], abs=1e-12), name


def test_silhouette_of_three_images_by_hand():
    points = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    score = silhouette_score(points, torch.tensor([[1, 1, 0]]), everyone(points))
    assert score.item() == pytest.approx(2 / 3, rel=1e-12)
    assert silhouette_score(points, torch.tensor([[0, 0, 0]]), everyone(points)).isnan()


def test_scores_do_not_see_batch_or_padding():
    points, activations, valid, keys = batch(num=9, images=24)
    together = table(points, activations, valid, keys)
    points[~valid], activations[~valid] = torch.nan, torch.nan
    poisoned = table(points, activations, valid, keys)
    for neuron in range(9):
        row, some = slice(neuron, neuron + 1), valid[neuron]
        alone = table(points[row, some], activations[row, some], valid[row, some], keys[row])
        for name, score in alone.items():
            assert score.item() == pytest.approx(together[name][neuron].item(), abs=1e-11), name
            assert score.item() == pytest.approx(poisoned[name][neuron].item(), abs=1e-11), name


def test_scores_do_not_see_the_order_of_images():
    points, activations, valid, keys = batch(num=9, images=24)
    points[0, 0] *= -5.0  # a cluster of its own
    order = torch.randperm(24, generator=torch.manual_seed(1))
    straight = table(points, activations, valid, keys)
    shuffled = table(points[:, order], activations[:, order], valid[:, order], keys)
    for name, score in straight.items():
        torch.testing.assert_close(shuffled[name], score, rtol=0, atol=1e-11, msg=name)


def test_a_nan_of_a_valid_image_spoils_its_neuron_alone():
    points, activations, valid, keys = batch(num=3, share_valid=2.0)
    clean = table(points, activations, valid, keys)
    points[1, 4, 2] = torch.nan
    spoilt = table(points, activations, valid, keys)
    for name, score in spoilt.items():
        assert score[1].isnan(), name
        assert score[[0, 2]].tolist() == pytest.approx(clean[name][[0, 2]].tolist(), abs=1e-11)


def test_embeddings_of_norm_zero_are_unlike_all_others():
    points = axes(4, 4)[None]
    points[0, 4:] = 0.0
    keys, valid = torch.zeros(1).long(), everyone(points)
    assert mean_distance_score(points, valid).item() == pytest.approx(1 - 12 / 56)
    assert vendi_score(points, valid).item() == pytest.approx(1 - 0.5**0.5 * 0.125**0.5)
    assert semanticlens_score(points, two_means(points, valid, keys), valid).item() == 1.0
    nothing = table(torch.zeros(1, 6, 3), torch.rand(1, 6), valid[:, :6], keys)
    assert nothing["silhouette_2"].item() == 0.0
    assert nothing["polylight"].item() == 0.25


def test_table_says_what_each_score_sees():
    framed, activations, valid, keys = batch()
    raw = framed.exp() + 1.0
    finished = valid | (torch.arange(20) % 2 == 0)
    baseline = torch.full((6,), 0.5, dtype=torch.float64)
    found = score_table(
        2.0 * framed, raw, activations, valid, keys, finished=finished, baseline=baseline, k_max=4
    )
    plain = cluster(raw, valid=finished, keys=keys, k_max=4)
    ours = polysemanticity_score(
        framed, activations, valid=valid, keys=keys, baseline=baseline, k_max=4
    )
    similarity = cluster_similarity(framed, ours.labels, 4)
    directions = F.normalize(framed, dim=-1)
    labels = two_means(directions, valid, keys)
    # On unit vectors, or k-means may end otherwise where two starts are equally good.
    given = {"valid": valid, "keys": keys, "baseline": baseline, "k_max": 4}
    evidence = torch.tensor(expit(ours.separation.numpy() - 4.0))
    assert (evidence > 0.9).any()
    assert (evidence < 0.1).any()
    cut = partition_score(directions, activations, **given).score
    expected = {
        "polylight": ours.score,
        "clustered": cut,
        "clustered_times_weight": evidence * cut,
        "bic_alone": partition_score(directions, activations, k_min=1, **given).score,
        **{
            name: evidence * partition_score(directions, activations, selection=name, **given).score
            + (1 - evidence) * ours.mean_distance / 4
            for name in ("xmeans", "gmeans", "sigclust")
        },
        "paper": paper_score(raw, plain.labels, plain.k, finished),
        "mean_distance": mean_distance_score(framed, valid),
        "semanticlens": semanticlens_score(directions, labels, valid, activations),
        "weighted_ms": weighted_ms_score(framed, activations, valid),
        "leinster_cobbold_0": leinster_cobbold_score(ours.cluster_weights, similarity, 0),
        "leinster_cobbold_1": leinster_cobbold_score(ours.cluster_weights, similarity, 1),
        "leinster_cobbold_2": rao_score(ours.cluster_weights, similarity),
        "vendi": vendi_score(framed, valid),
        "silhouette_2": silhouette_score(framed, labels, valid),
    }
    assert expected.keys() == found.keys()
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=0, atol=1e-12, msg=name)
    other = score_table(
        framed, raw, activations, valid, keys, baseline=baseline, k_max=4, selection="xmeans"
    )
    assert tuple(other) == tuple("bic" if name == "xmeans" else name for name in NAMES)
    for name, same in (("polylight", "xmeans"), ("bic", "polylight"), ("bic_alone", "bic_alone")):
        torch.testing.assert_close(other[name], found[same], rtol=0, atol=1e-9, msg=name)
    default = score_table(framed, raw, activations, valid, keys)
    kept = cluster(raw, valid=valid, keys=keys)
    torch.testing.assert_close(
        default["paper"], paper_score(raw, kept.labels, kept.k, valid), rtol=0, atol=1e-12
    )


def metrics():
    return {
        "polylight": PolysemanticityScore(key=1000),
        "k_eff": EffectiveFeatures(key=1000),
        "paper": PaperScore(key=1000),
    }


def test_metrics_are_the_functions_of_all_batches():
    points, activations, valid, keys = batch(num=1, share_valid=2.0)
    points = F.normalize(points, dim=-1)
    expected = score_table(points, points, activations, valid, keys)
    expected["k_eff"] = 1 / (1 - expected["polylight"])
    together = MetricCollection(metrics())
    for rows in (slice(0, 7), slice(7, 15), slice(15, 20)):
        together.update(points[0, rows], activations[0, rows])
    # The images are kept once.
    assert len(together.compute_groups) == 1
    found = together.compute()
    for name, metric in metrics().items():
        metric.update(points[0], activations[0])
        assert metric.compute().shape == ()
        assert metric.compute().item() == pytest.approx(expected[name].item(), rel=1e-12), name
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-12), name


@pytest.mark.parametrize("strong", [False, True])
def test_metrics_of_two_processes_have_the_images_of_both(strong):
    points, activations, _, _ = batch(num=1, images=9)
    strength = activations[0] if strong else None
    turned = activations[0].flip(0) if strong else None
    for kind in sorted({type(metric) for metric in metrics().values()}, key=str):
        metric = kind(
            dist_sync_fn=lambda state, group: [state, state.flip(0)],
            distributed_available_fn=lambda: True,
        )
        metric.update(points[0], strength)
        both = kind()
        both.update(points[0], strength)
        both.update(points[0].flip(0), turned)
        assert metric.compute().item() == pytest.approx(both.compute().item(), rel=1e-12)


def wrong_calls():
    points, line = torch.zeros(2, 4, 3), torch.zeros(2, 4)
    yes = torch.ones(2, 4, dtype=torch.bool)
    keys, labels = torch.zeros(2).long(), torch.zeros(2, 4).long()
    return [
        (lambda: mean_distance_score(line, yes), r"got \[2, 4\].*embeddings\[None\]"),
        (lambda: mean_distance_score(points[:, :0], yes[:, :0]), r"images >= 1.*\[2, 0, 3\]"),
        (lambda: vendi_score(points, line), r"valid must be bool \[2, 4\].*float32"),
        (lambda: weighted_ms_score(points, line[:1], yes), r"activations must be \[2, 4\]"),
        (lambda: two_means(points, yes, line[0]), r"keys must be int64 \[2\].*float32 \[4\]"),
        (lambda: two_means(points, yes, keys, 0), r"restarts and iterations .* got 0"),
        (lambda: semanticlens_score(points, labels[:1], yes), r"labels must be \[2, 4\]"),
        (lambda: semanticlens_score(points, labels, yes, line[0]), r"activations must be \[2, 4\]"),
        (lambda: silhouette_score(points, labels[0], yes), r"labels must be \[2, 4\].*\[4\]"),
        (lambda: leinster_cobbold_score(line, points), r"\[2, 4\] and \[2, 4, 3\]"),
        (lambda: leinster_cobbold_score(line, points @ points.mT, -1), r"order.*\[0, inf\].*-1"),
        (lambda: score_table(points, points[:1], line, yes, keys), r"valid must be bool \[1, 4\]"),
    ]


@pytest.mark.parametrize(("call", "message"), wrong_calls())
def test_errors_name_what_came(call, message):
    with pytest.raises(InputError, match=message):
        call()
