import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from polylight.clustering import cluster
from polylight.errors import InputError
from polylight.kernels import centre, gram_kmeans, kmeans_draws
from polylight.kernels.kmeans import reference

NAN = float("nan")


def problems(num, images, dims, seed=0):
    """Centred points of clouds, one to four a neuron; of some neurons few or none are valid."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(num, images, dims, generator=generator, dtype=torch.float64)
    modes = 3.0 * torch.randn(num, 4, dims, generator=generator, dtype=torch.float64)
    points += modes.gather(
        1,
        (torch.arange(images) % (1 + torch.arange(num)[:, None] % 4))[..., None].expand(
            -1, -1, dims
        ),
    )
    valid = torch.rand(num, images, generator=generator) < 0.9
    valid[0] = True
    valid[2::7, images // 3 :] = False
    valid[3::7] = False
    return centre(points, valid)[0], valid.sum(-1)


def arguments(points, counts, k_max, restarts, iterations=16):
    limits = torch.minimum(counts // 2, torch.tensor(k_max))
    limits = torch.maximum(limits, counts.clamp_max(1))
    keys = torch.arange(len(counts)) + 7
    return points, counts, limits, kmeans_draws(keys, k_max, restarts), k_max, iterations


def solve(given, backend, device="cpu"):
    """What a backend makes of points."""
    points, *rest, k_max, iterations = given
    tensors = [part.to(device) for part in (points @ points.mT, *rest)]
    labels, inertia = gram_kmeans(*tensors, k_max, iterations, backend=backend)
    assert labels.device.type == torch.device(device).type
    return labels.cpu(), inertia.cpu()


def same_partition(a, b):
    """Whether two labellings [..., N] agree up to the names of the clusters: bool [...]."""
    a, b = a.long(), b.long()
    return ((a[..., :, None] == a[..., None, :]) == (b[..., :, None] == b[..., None, :])).all(
        -1
    ).all(-1) & ((a < 0) == (b < 0)).all(-1)


def agree(found, expected, given):
    """Same partition, or another that is as good but for rounding; the same inertia."""
    labels, inertia = found
    assert labels.dtype == torch.int8
    assert labels.shape == expected[0].shape
    total = given[0].square().sum((1, 2))
    error = (inertia - expected[1]).abs()
    assert (error <= 1e-9 * expected[1] + 1e-12 * total[:, None]).all()
    return same_partition(labels, expected[0])


def inertia_by_hand(points, labels):
    """In numpy, from the definition."""
    return sum(
        ((points[labels == c] - points[labels == c].mean(0)) ** 2).sum() for c in np.unique(labels)
    )


def test_the_references_lloyd_is_that_of_sklearn():
    points = np.random.default_rng(3).normal(size=(40, 12))
    model = KMeans(5, init=points[:5], n_init=1, tol=0, algorithm="lloyd").fit(points)
    start = ((points[:, None] - points[:5]) ** 2).sum(-1).argmin(1)
    found = reference.lloyd(points.tolist(), start.tolist(), 5, 100)
    assert found == model.labels_.tolist()
    assert reference.inertia(points.tolist(), found, 5) == pytest.approx(model.inertia_, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_each_exchange_of_the_reference_is_the_best_single_move(seed):
    rng = np.random.default_rng(seed)
    points, labels = rng.normal(size=(14, 3)), rng.integers(0, 4, 14)
    moves = 0
    while True:
        best, before = None, inertia_by_hand(points, labels)
        for image in range(14):
            for target in range(4):
                moved = labels.copy()
                moved[image] = target
                after = inertia_by_hand(points, moved)
                keeps_all = len(np.unique(moved)) == len(np.unique(labels))
                if keeps_all and after < before * (1 - 1e-12):
                    best, before = moved, after
        found = reference.exchange(points.tolist(), labels.tolist(), 4, 1)
        if best is None:
            assert found == labels.tolist()
            break
        assert found == best.tolist()
        labels, moves = best, moves + 1
    assert moves >= 3


def test_the_reference_chooses_seeds_as_by_hand():
    points = [[0.0], [1.0], [10.0]]
    # The first point; then squared distances 0, 1, 100: the draws fall on points 1, 2, 2 and 1,
    # of which point 2 leaves an inertia of 1 and point 1 one of 81.
    draws = [0.1, 0.5 / 101, 1.5 / 101, 0.9, 0.2 / 101]
    assert reference.choose_seeds(points, draws, 1) == [0]
    assert reference.choose_seeds(points, draws, 2) == [0, 2]
    # Points 1 and 2 leave the same inertia: the first that is drawn.
    square = [[0.0, 0.0], [0.0, 3.0], [3.0, 0.0]]
    assert reference.choose_seeds(square, [0.1, 0.9, 0.1, 0.9, 0.1], 2) == [0, 2]
    assert reference.choose_seeds(square, [0.1, 0.1, 0.9, 0.9, 0.1], 2) == [0, 1]


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_backends_find_what_the_reference_finds(backend):
    same = []
    for seed in range(12):
        given = arguments(*problems(7, 8 + 4 * seed, 2 + 3 * seed, seed), 2 + seed % 7, 3)
        same.append(agree(solve(given, backend), reference.kmeans(*given), given).flatten())
    same = torch.cat(same)
    assert len(same) >= 350
    assert same.double().mean() >= 0.99


def test_numba_finds_what_torch_finds_in_many_problems():
    same = []
    for seed in range(20):
        given = arguments(*problems(60, 8 + 4 * seed, 2 + 3 * seed, seed), 2 + seed % 7, 4)
        same.append(agree(solve(given, "numba"), solve(given, "torch"), given).flatten())
    same = torch.cat(same)
    assert len(same) >= 5000
    assert same.double().mean() >= 0.999


@pytest.mark.parametrize(
    ("images", "k_max", "restarts"),
    [
        (1, 1, 1),
        (1, 2, 1),
        (2, 2, 2),
        (3, 3, 1),
        (7, 3, 2),
        (17, 8, 1),
        (33, 3, 1),
        (64, 2, 1),
        (100, 2, 1),
    ],
)
def test_triton_finds_what_the_reference_finds(images, k_max, restarts, device, poison):
    pytest.importorskip("triton")
    num = 5 if images < 17 else 1
    given = arguments(*problems(num, images, 6, images), k_max, restarts)
    found = solve(given, "triton", device)
    assert agree(found, reference.kmeans(*given), given).all()
    for a, b in zip(found, solve(given, "triton", device), strict=True):
        assert torch.equal(a, b)


def test_triton_says_how_many_points_it_takes():
    triton = pytest.importorskip("polylight.kernels.kmeans.triton")
    assert triton.fits(1024, 8)
    assert triton.fits(512, 16)
    assert not triton.fits(1025, 8)
    assert not triton.fits(1024, 9)


def test_of_more_points_than_triton_takes_torch_finds_the_clusters(monkeypatch, device):
    triton = pytest.importorskip("polylight.kernels.kmeans.triton")
    monkeypatch.setattr(triton, "fits", lambda images, k_max: False)
    monkeypatch.setattr(triton, "launch", lambda *args, **kwargs: pytest.fail("was launched"))
    given = arguments(*problems(2, 9, 4), 3, 2)
    for a, b in zip(solve(given, "triton", device), solve(given, "torch", device), strict=True):
        assert torch.equal(a, b)


def test_duplicates_fill_every_cluster(backend, device):
    points = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)[None]
    points = centre(points, torch.ones(1, 12, dtype=torch.bool))[0]
    given = arguments(points, torch.tensor([12]), 5, 2)
    labels, inertia = solve(given, backend, device)
    expected = reference.kmeans(*given)
    torch.testing.assert_close(inertia, expected[1], rtol=1e-9, atol=1e-12)
    for k in range(1, 6):
        assert labels[0, k - 1].unique().tolist() == list(range(k))
        assert expected[0][0, k - 1].unique().tolist() == list(range(k))
    assert same_partition(labels[0, 2], torch.arange(12) // 4)


def test_points_all_the_same_or_none(backend, device):
    given = arguments(torch.zeros(2, 6, 1, dtype=torch.float64), torch.tensor([6, 0]), 3, 2)
    for labels, inertia in (solve(given, backend, device), reference.kmeans(*given)):
        assert (inertia == 0).all()
        assert [labels[0, k].unique().tolist() for k in range(3)] == [[0], [0, 1], [0, 1, 2]]
        assert (labels[1] == -1).all()


def test_nan_stays_with_its_neuron(backend, device):
    points, counts = problems(3, 9, 4, 2)
    clean = solve(arguments(points, counts, 3, 2), backend, device)
    spoilt = points.clone()
    spoilt[1, : counts[1]] = NAN
    labels, inertia = solve(arguments(spoilt, counts, 3, 2), backend, device)
    assert inertia[1].isnan().all()
    assert ((labels[1] >= 0) == (clean[0][1] >= 0)).all()
    assert (labels[1] < 3).all()
    for neuron in (0, 2):
        assert torch.equal(labels[neuron], clean[0][neuron])
        assert torch.equal(inertia[neuron], clean[1][neuron])


def test_numba_gives_the_same_bits_on_any_number_of_threads_and_in_any_batch():
    given = arguments(*problems(23, 30, 10), 6, 3)
    torch.set_num_threads(1)
    alone = solve(given, "numba")
    torch.set_num_threads(2)
    together = solve(given, "numba")
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
    gram = given[0] @ given[0].mT
    for neuron in range(23):
        row = slice(neuron, neuron + 1)
        part = [part[row] for part in (gram, *given[1:4])]
        one = gram_kmeans(*part, *given[4:], backend="numba")
        assert torch.equal(one[0][0], alone[0][neuron])
        assert torch.equal(one[1][0], alone[1][neuron])


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_cluster_gives_the_same_whoever_works(kernels, device):
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(4, 14, 8, generator=generator)
    points += 8.0 * torch.eye(8)[torch.arange(14) % (1 + torch.arange(4)[:, None])]
    valid = torch.rand(4, 14, generator=generator) < 0.9
    if kernels == "triton":
        pytest.importorskip("triton")
        points, valid = points.to(device), valid.to(device)
    keys = torch.arange(4, device=points.device)
    found = cluster(points, valid=valid, keys=keys, k_max=4, restarts=2, kernels=kernels)
    expected = cluster(points, valid=valid, keys=keys, k_max=4, restarts=2, kernels="torch")
    assert torch.equal(found.k, expected.k)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.bic, expected.bic, rtol=1e-9, atol=0, equal_nan=True)
    torch.testing.assert_close(found.inertia, expected.inertia, rtol=1e-9, atol=0, equal_nan=True)


def test_unknown_kernels_are_named():
    with pytest.raises(InputError, match="auto, torch, triton, got 'cuda'"):
        cluster(
            torch.zeros(1, 2, 3),
            valid=torch.ones(1, 2, dtype=torch.bool),
            keys=torch.tensor([0]),
            kernels="cuda",
        )
