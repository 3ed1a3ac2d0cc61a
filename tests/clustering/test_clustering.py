import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from polylight.clustering import cluster, kmeans
from polylight.errors import InputError
from polylight.kernels.kmeans.torch import exchange, inertia_of, lloyd


def batch(num=6, images=24, dims=16, seed=0, dtype=torch.float32):
    """Clustered and unclustered neurons."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num, images, dims, generator=generator, dtype=dtype)
    centres = 3.0 * torch.randn(num, 4, dims, generator=generator, dtype=dtype)
    points[::2] += centres[::2, torch.arange(images) % 4]
    valid = torch.rand(num, images, generator=generator) < 0.9
    return points, valid, 1000 + torch.arange(num)


def random_problems(count, seed):
    rng = np.random.default_rng(seed)
    for index in range(count):
        num, dims = int(rng.integers(8, 65)), int(rng.integers(2, 65))
        k = min(int(rng.integers(2, 9)), num // 2)
        points = rng.normal(size=(num, dims))
        if index % 2:
            centres = rng.normal(size=(int(rng.integers(2, 9)), dims)) * rng.uniform(1, 6)
            points += centres[rng.integers(0, len(centres), num)]
        yield points, k


def inertia_by_hand(points, labels):
    return sum(
        ((points[labels == c] - points[labels == c].mean(0)) ** 2).sum() for c in np.unique(labels)
    )


def test_inertia_against_sklearn():
    ratios = []
    for index, (points, k) in enumerate(random_problems(200, seed=0)):
        reference = KMeans(k, n_init=10, tol=0, random_state=index).fit(points).inertia_
        found = cluster(
            torch.tensor(points)[None],
            valid=torch.ones(1, len(points), dtype=torch.bool),
            keys=torch.tensor([index]),
            k_max=k,
        )
        ratios.append(found.inertia[0, k - 1].item() / reference)
    ratios = np.array(ratios)
    assert ratios.max() <= 1.001
    assert (ratios < 0.999).sum() > 80
    assert ratios.mean() < 0.99


def test_inertia_is_that_of_the_labels():
    points, valid, keys = batch()
    found = cluster(points, valid=valid, keys=keys)
    for neuron, k in enumerate(found.k.tolist()):
        labels = found.labels[neuron, valid[neuron]].numpy()
        assert sorted(set(labels)) == list(range(k))
        expected = inertia_by_hand(points[neuron, valid[neuron]].double().numpy(), labels)
        assert found.inertia[neuron, k - 1].item() == pytest.approx(expected, rel=1e-12)
    assert (found.inertia.diff(dim=1) <= 0).all()
    assert ((found.labels == -1) == ~valid).all()


@pytest.mark.parametrize(("k_min", "k_max"), [(2, 8), (3, 6), (6, 6)])
def test_the_best_k_from_k_min_on(k_min, k_max):
    points, valid, keys = batch()
    valid[1, 2 * k_min - 1 :] = False
    valid[1, : 2 * k_min - 1] = True
    free = cluster(points, valid=valid, keys=keys, k_max=k_max)
    found = cluster(points, valid=valid, keys=keys, k_min=k_min, k_max=k_max)
    assert torch.equal(found.inertia.nan_to_num(), free.inertia.nan_to_num())
    expected = np.array(
        [k_min + np.nanargmax(row[k_min - 1 :]) for row in free.bic[[0, 2, 3, 4, 5]]]
    )
    assert found.k[[0, 2, 3, 4, 5]].tolist() == expected.tolist()
    # It is more than its valid reach.
    assert found.k[1] == 1
    assert (free.k < k_min).sum() >= 2
    for neuron, k in enumerate(found.k.tolist()):
        labels = found.labels[neuron, valid[neuron]].numpy()
        assert sorted(set(labels)) == list(range(k))
        inertia = inertia_by_hand(points[neuron, valid[neuron]].double().numpy(), labels)
        assert found.inertia[neuron, k - 1].item() == pytest.approx(inertia, rel=1e-12)
    kept = free.k >= k_min
    assert torch.equal(found.labels[kept], free.labels[kept])


def test_lloyd_agrees_with_sklearn_from_the_same_start():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 12))
    seeds = points[:5]
    model = KMeans(5, init=seeds, n_init=1, tol=0, algorithm="lloyd").fit(points)
    start = ((points[:, None] - seeds) ** 2).sum(-1).argmin(1)
    centred = torch.tensor(points - points.mean(0))[None]
    gram = centred @ centred.mT
    found = lloyd(gram, torch.tensor(start, dtype=torch.int8)[None, None], 5, 100)
    np.testing.assert_array_equal(found[0, 0].numpy(), model.labels_)
    assert inertia_of(gram, found, 5).item() == pytest.approx(model.inertia_, rel=1e-12)


def test_exchange_ends_where_no_single_move_helps():
    rng = np.random.default_rng(5)
    points = rng.normal(size=(20, 4))
    centred = torch.tensor(points - points.mean(0))[None]
    start = torch.tensor(rng.integers(0, 4, 20), dtype=torch.int8)[None, None]
    gram = centred @ centred.mT
    labels = exchange(gram, start, 4, 500)[0, 0].numpy()
    best = inertia_by_hand(points, labels)
    assert best < inertia_by_hand(points, start[0, 0].numpy())
    for image in range(20):
        for target in range(4):
            moved = labels.copy()
            moved[image] = target
            assert inertia_by_hand(points, moved) >= best * (1 - 1e-12)


def test_exchange_fills_empty_clusters_even_with_duplicates():
    gram = torch.zeros(1, 6, 6, dtype=torch.float64)
    labels = exchange(gram, torch.zeros(1, 1, 6, dtype=torch.int8), 4, 8)
    assert sorted(set(labels.flatten().tolist())) == [0, 1, 2, 3]


def test_same_keys_give_the_same_bits_and_others_other_starts():
    points, valid, keys = batch()
    first = cluster(points, valid=valid, keys=keys)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    second = cluster(points, valid=valid, keys=keys)
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    one = cluster(points, valid=valid, keys=keys, restarts=1, iterations=1)
    other = cluster(points, valid=valid, keys=keys + 1, restarts=1, iterations=1)
    assert not torch.equal(one.inertia.nan_to_num(), other.inertia.nan_to_num())


@pytest.mark.parametrize("dims", [3, 16, 200])
@pytest.mark.parametrize("images", [7, 24, 63])
def test_a_neuron_alone_gets_what_it_gets_in_batch(images, dims):
    points, valid, keys = batch(images=images, dims=dims)
    together = cluster(points, valid=valid, keys=keys)
    for neuron in range(len(keys)):
        row = slice(neuron, neuron + 1)
        alone = cluster(points[row], valid=valid[row], keys=keys[row])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[neuron], rtol=0, atol=0, equal_nan=True)


def test_order_of_neurons_does_not_matter():
    points, valid, keys = batch()
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1))
    straight = cluster(points, valid=valid, keys=keys)
    shuffled = cluster(points[order], valid=valid[order], keys=keys[order])
    for a, b in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(a[order], b, rtol=0, atol=0, equal_nan=True)


def test_chunks_do_not_matter(monkeypatch):
    points, valid, keys = batch(num=9)
    whole = cluster(points, valid=valid, keys=keys)
    images = points.shape[1]
    for neurons in (1, 2, 4):
        monkeypatch.setitem(kmeans._CHUNK, "cpu", neurons * images * (16 * 8 + images))
        for a, b in zip(cluster(points, valid=valid, keys=keys), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_order_of_images_does_not_matter():
    points, valid, keys = batch(num=20, images=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    straight = cluster(points, valid=valid, keys=keys)
    shuffled = cluster(points[:, order], valid=valid[:, order], keys=keys)
    assert torch.equal(straight.k, shuffled.k)
    torch.testing.assert_close(
        straight.inertia, shuffled.inertia, rtol=1e-12, atol=0, equal_nan=True
    )
    for a, b in zip(straight.labels[:, order], shuffled.labels, strict=True):
        assert adjusted_rand_score(a, b) == 1.0


def test_labels_are_by_size_and_then_by_first_image():
    centres = 10.0 * torch.eye(4)
    truth = torch.tensor([2, 0, 1, 1, 0, 2, 1, 3, 3, 1])
    found = cluster(
        centres[truth][None] + 0.01 * torch.randn(1, 10, 4, generator=torch.manual_seed(0)),
        valid=torch.ones(1, 10, dtype=torch.bool),
        keys=torch.tensor([4]),
        k_max=4,
    )
    assert found.labels[0].tolist() == [1, 2, 0, 0, 2, 1, 0, 3, 3, 0]


def test_float32_and_float64_agree():
    points, valid, keys = batch()
    single = cluster(points, valid=valid, keys=keys)
    double = cluster(points.double(), valid=valid, keys=keys)
    assert torch.equal(single.labels, double.labels)
    assert single.bic.dtype == torch.float64


def test_images_of_an_invalid_image_do_not_leak():
    points, valid, keys = batch()
    clean = cluster(points.masked_fill(~valid[..., None], 0.0), valid=valid, keys=keys)
    for poison in (torch.nan, torch.inf, 1e30):
        found = cluster(points.masked_fill(~valid[..., None], poison), valid=valid, keys=keys)
        for a, b in zip(found, clean, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_nan_of_a_valid_image_marks_its_neuron_only():
    points, valid, keys = batch()
    clean = cluster(points, valid=valid, keys=keys)
    image = valid[2].nonzero()[0]
    points[2, image] = torch.nan
    found = cluster(points, valid=valid, keys=keys)
    assert found.bic[2].isnan().all()
    assert found.k[2] == 1
    others = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(found.labels[others], clean.labels[others])


def test_degenerate_neurons():
    points = torch.randn(5, 12, 8, generator=torch.manual_seed(0))
    valid = torch.ones(5, 12, dtype=torch.bool)
    valid[0] = False  # no image
    valid[1, 1:] = False  # one image
    valid[2, 3:] = False  # three images: two clusters would not average two
    points[3] = points[3, 0]  # the same image
    points[4] = points[4, 0] * (1 + 1e-7 * torch.randn(12, 1, generator=torch.manual_seed(1)))
    found = cluster(points, valid=valid, keys=torch.arange(5))
    assert found.k.tolist() == [1, 1, 1, 1, 1]
    assert (found.labels[0] == -1).all()
    assert found.labels[1].tolist() == [0] + [-1] * 11
    assert (found.labels[3:] == 0).all()
    reach = [0, 1, 1, 6, 6]
    assert found.bic.isfinite().sum(1).tolist() == reach
    assert found.inertia.isfinite().sum(1).tolist() == reach


def test_no_neurons():
    points, valid, keys = batch()
    found = cluster(points[:0], valid=valid[:0], keys=keys[:0])
    assert found.labels.shape == (0, 24)
    assert found.bic.shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.zeros(4, 5)}, r"\[neurons, images >= 1, dimensions >= 1\].*\[4, 5\]"),
        ({"embeddings": torch.zeros(6, 24, 16).long()}, "floating-point.*int64"),
        ({"valid": torch.ones(6, 24)}, r"valid must be bool \[6, 24\].*float32"),
        ({"keys": torch.zeros(5, dtype=torch.int64)}, r"keys must be int64 \[6\].*\[5\]"),
        ({"k_max": 0}, r"k_max must be in 1\.\.127, got 0"),
        ({"k_min": 0}, r"k_min must be in 1\.\.k_max, got 0 with k_max 8"),
        ({"k_min": 4, "k_max": 3}, "got 4 with k_max 3"),
        ({"restarts": 0}, "at least 1, got 0 and 16"),
        ({"backend": "fais"}, "gram, faiss, cuml, got 'fais'; nearest: faiss"),
    ],
)
def test_errors_name_what_came(change, message):
    points, valid, keys = batch()
    arguments = {"embeddings": points, "valid": valid, "keys": keys} | change
    with pytest.raises(InputError, match=message):
        cluster(**arguments)
