import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from polylight.clustering import cluster
from polylight.clustering.splits import CRITICAL, anderson_darling
from polylight.errors import InputError

SPLITTING = ["xmeans", "gmeans", "sigclust"]


def mixture(num, images, modes, apart, dims=16, seed=0):
    """Round modes of unit variance with means ``apart`` from one another, and their truth."""
    generator = torch.Generator().manual_seed(seed + images)
    truth = torch.arange(images) % modes
    centres = torch.eye(dims, dtype=torch.float64)[:modes] * apart / math.sqrt(2.0)
    noise = torch.randn(num, images, dims, generator=generator, dtype=torch.float64)
    points = noise + centres[truth]
    return points, torch.ones(num, images, dtype=torch.bool), 1000 + torch.arange(num), truth


def run(points, valid, keys, **settings):
    return cluster(points, valid=valid, keys=keys, restarts=4, **settings)


def share_found(found, truth):
    """Neurons whose clusters are the true ones."""
    same = (found.labels[:, :, None] == found.labels[:, None]) == (truth[:, None] == truth)
    return same.all(2).all(1).double().mean().item()


@pytest.mark.parametrize(
    ("selection", "modes", "images", "share"),
    [
        ("bic", 2, 12, 0.95),
        ("bic", 3, 16, 0.95),
        ("bic", 3, 64, 0.95),
        ("xmeans", 2, 32, 0.95),
        ("xmeans", 3, 64, 0.95),
        ("gmeans", 2, 32, 0.95),
        ("gmeans", 3, 64, 0.95),
        ("sigclust", 2, 12, 0.85),
        ("sigclust", 2, 16, 0.9),
        ("sigclust", 3, 16, 0.85),
        ("sigclust", 3, 32, 0.9),
        ("sigclust", 3, 64, 0.9),
    ],
)
def test_modes_far_apart_are_found(selection, modes, images, share):
    points, valid, keys, truth = mixture(40, images, modes, 10.0)
    assert share_found(run(points, valid, keys, selection=selection), truth) >= share


@pytest.mark.parametrize("images", [12, 16])
def test_of_few_images_xmeans_still_parts_the_modes(images):
    points, valid, keys, truth = mixture(60, images, 2, 10.0)
    found = run(points, valid, keys, selection="xmeans")
    together = found.labels[:, :, None] == found.labels[:, None]
    assert not (together & (truth[:, None] != truth)).any()


@pytest.mark.parametrize("selection", ["gmeans", "sigclust"])
@pytest.mark.parametrize("images", [16, 32])
def test_a_long_cloud_is_not_split_though_the_criterion_would(selection, images):
    points, valid, keys, _ = mixture(150, images, 1, 0.0)
    points[..., 0] *= 4.0
    assert (run(points, valid, keys).k > 1).double().mean() > 0.9
    found = run(points, valid, keys, selection=selection)
    assert (found.k > 1).double().mean() <= 0.11


def reference_statistic(values):
    """The textbook form, from the distribution function."""
    n = len(values)
    z = np.sort((values - values.mean()) / values.std(ddof=1))
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in z])
    index = np.arange(1, n + 1)
    square = -n - ((2 * index - 1) * (np.log(below) + np.log1p(-below[::-1]))).sum() / n
    return square * (1 + 4 / n - 25 / n**2)


def test_anderson_darling_against_the_textbook():
    rng = np.random.default_rng(0)
    valid = torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < 0.8
    values = torch.full((40, 30), torch.nan, dtype=torch.float64)
    expected = []
    for row in range(40):
        own = rng.normal(size=int(valid[row].sum())) ** (1 + row % 2)
        expected.append(reference_statistic(own))
        values[row, valid[row]] = torch.tensor((own - own.mean()) / own.std(ddof=1))
    np.testing.assert_allclose(anderson_darling(values, valid).numpy(), expected, rtol=1e-10)


def test_critical_value_is_that_of_one_in_ten_thousand():
    values = torch.randn(100000, 64, generator=torch.Generator().manual_seed(0)).double()
    values = (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)
    statistic = anderson_darling(values, torch.ones(100000, 64, dtype=torch.bool))
    assert 2 <= (statistic > CRITICAL).sum() <= 30


def test_nan_reaches_the_statistic():
    values = torch.zeros(1, 5, dtype=torch.float64)
    values[0, 1] = torch.nan
    valid = torch.tensor([[True, True, True, False, False]])
    assert anderson_darling(values, valid).isnan().all()


def log_likelihood_criterion(points, labels, k):
    num, dims = points.shape
    means = np.stack([points[labels == c].mean(0) for c in range(k)])
    squares = ((points - means[labels]) ** 2).sum(1)
    variance = squares.sum() / (dims * (num - k))
    priors = np.bincount(labels)[labels] / num
    density = -0.5 * dims * math.log(2 * math.pi * variance) - squares / (2 * variance)
    return (np.log(priors) + density).sum() - 0.5 * (k * (dims + 1)) * math.log(num)


def xmeans(points):
    """Labels by plain recursion."""
    labels = np.zeros(len(points), dtype=int)
    if len(points) >= 4:
        model = KMeans(2, n_init=60, tol=0, random_state=0).fit(points)
        halves = model.labels_
        better = log_likelihood_criterion(points, halves, 2) > log_likelihood_criterion(
            points, labels, 1
        )
        if better and np.bincount(halves).min() >= 2:
            labels[halves == 0] = xmeans(points[halves == 0])
            labels[halves == 1] = labels.max() + 1 + xmeans(points[halves == 1])
    return labels


def test_xmeans_against_plain_recursion():
    points, valid, keys, _ = mixture(25, 30, 4, 7.0, dims=5, seed=3)
    points[..., -1] *= torch.linspace(1.0, 5.0, 25)[:, None]
    found = cluster(points, valid=valid, keys=keys, k_max=15, selection="xmeans")
    references = [xmeans(own) for own in points.numpy()]
    assert len({labels.max() for labels in references}) > 1
    for labels, k, reference in zip(found.labels, found.k.tolist(), references, strict=True):
        assert k == reference.max() + 1
        assert adjusted_rand_score(labels, reference) == 1.0


def uneven(images=48):
    points, valid, keys, _ = mixture(8, images, 3, 7.0)
    points[::2, :, 0] *= 3.0
    valid = torch.rand(8, images, generator=torch.Generator().manual_seed(2)) < 0.9
    return points, valid, keys


@pytest.mark.parametrize("selection", SPLITTING)
def test_what_a_neuron_gets_is_its_own(selection):
    points, valid, keys = uneven()
    found = run(points, valid, keys, selection=selection)
    torch.manual_seed(99)
    for neuron in range(8):
        row = slice(neuron, neuron + 1)
        alone = run(points[row], valid[row], keys[row], selection=selection)
        assert torch.equal(alone.labels, found.labels[row])
        assert torch.equal(alone.k, found.k[row])
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    shuffled = run(points[:, order], valid[:, order], keys, selection=selection)
    assert torch.equal(shuffled.k, found.k)
    for a, b in zip(found.labels[:, order], shuffled.labels, strict=True):
        assert adjusted_rand_score(a, b) == 1.0
    poisoned = points.masked_fill(~valid[..., None], torch.nan)
    assert torch.equal(run(poisoned, valid, keys, selection=selection).labels, found.labels)


@pytest.mark.parametrize("selection", SPLITTING)
def test_labels_are_by_size_and_the_criterion_is_that_of_the_sweep(selection):
    points, valid, keys = uneven()
    found = run(points, valid, keys, selection=selection)
    plain = run(points, valid, keys)
    torch.testing.assert_close(found.bic, plain.bic, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found.inertia, plain.inertia, rtol=0, atol=0, equal_nan=True)
    assert ((found.labels == -1) == ~valid).all()
    assert found.k.max() > 1
    for labels, vote, k in zip(found.labels, valid, found.k.tolist(), strict=True):
        sizes = labels[vote].bincount().tolist()
        assert len(sizes) == k
        assert sizes == sorted(sizes, reverse=True)
        assert min(sizes) >= 2


@pytest.mark.parametrize("selection", SPLITTING)
def test_no_more_clusters_than_asked_for(selection):
    points, valid, keys, truth = mixture(10, 96, 6, 14.0)
    for k_max in (1, 2, 4):
        found = run(points, valid, keys, selection=selection, k_max=k_max)
        assert (found.k <= k_max).all()
        assert (found.labels.amax(1) == found.k - 1).all()
        assert found.bic.shape == (10, k_max)
    if selection != "gmeans":
        assert (found.k == 4).all()
        whole = run(points, valid, keys, selection=selection)
        assert share_found(whole, truth) >= 0.8


def test_the_splits_that_gain_most_come_first():
    centres = torch.tensor([[-100.0, 0.0], [-90.0, 0.0], [100.0, 0.0], [140.0, 0.0]])
    truth = torch.arange(40) % 4
    noise = torch.randn(1, 40, 2, generator=torch.Generator().manual_seed(0))
    found = run(
        noise + centres[truth],
        torch.ones(1, 40, dtype=torch.bool),
        torch.tensor([5]),
        selection="xmeans",
        k_max=3,
    )
    expected = torch.tensor([0, 0, 1, 2])[truth]
    assert adjusted_rand_score(found.labels[0], expected) == 1.0


@pytest.mark.parametrize("selection", SPLITTING)
def test_degenerate_neurons(selection):
    points = torch.randn(7, 12, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(7, 12, dtype=torch.bool)
    valid[0] = False
    valid[1, 1:] = False
    valid[2, 3:] = False
    points[3] = points[3, 0]
    points[4] = points[4, 0] * (1 + 1e-7 * torch.randn(12, 1, generator=torch.manual_seed(1)))
    points[5, 4] = torch.nan
    points[6, 0] += 1e3  # one far from the others is not split off
    found = run(points, valid, torch.arange(7), selection=selection)
    assert found.k.tolist() == [1] * 7
    assert torch.equal(found.labels, torch.where(valid, 0, -1))


@pytest.mark.parametrize("selection", SPLITTING)
def test_no_neurons_and_few_images(selection):
    points, valid, keys = uneven()
    none = run(points[:0], valid[:0], keys[:0], selection=selection)
    assert none.labels.shape == (0, 48)
    assert none.k.shape == (0,)
    few = run(points[:, :3], valid[:, :3], keys, selection=selection)
    assert (few.k == 1).all()


def test_kernels_and_back_ends_agree():
    points, valid, keys, truth = mixture(4, 32, 3, 12.0)
    # Of modes equally far apart, which two fall together would be a matter of rounding.
    points[:, :, 2] *= 2.0
    for selection in SPLITTING:
        fast = run(points, valid, keys, selection=selection)
        plain = run(points, valid, keys, selection=selection, kernels="torch")
        assert torch.equal(fast.labels, plain.labels)
    pytest.importorskip("faiss")
    found = run(points, valid, keys, selection="sigclust", backend="faiss")
    assert share_found(found, truth) == share_found(fast, truth)


def test_an_unknown_selection_names_the_nearest():
    points, valid, keys = uneven()
    message = "bic, xmeans, gmeans, sigclust, got 'xmean'; nearest: xmeans"
    with pytest.raises(InputError, match=message):
        run(points, valid, keys, selection="xmean")
