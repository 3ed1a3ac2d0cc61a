import numpy as np
import pytest
import torch
from polylight.kernels.seeding import draw

from polylight.clustering import cluster
from polylight.errors import InputError
from polylight.kernels import (
    centred_gram,
    centred_gram_numba,
    compiling,
    gram_kmeans,
    gram_kmeans_numba,
)

NAN = float("nan")


def problems(num, images, dims, seed=0, device="cpu"):
    """Gram matrices of clouds, one to four a neuron, of which some have few valid or none."""
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
    gram, _ = centred_gram.centred_gram(points, valid)
    return gram.to(device), valid.sum(-1).to(device)


def arguments(gram, counts, k_max, restarts, iterations=16):
    limits = torch.minimum(counts // 2, torch.tensor(k_max, device=counts.device))
    limits = torch.maximum(limits, counts.clamp_max(1))
    keys = torch.arange(len(counts), device=counts.device) + 7
    return gram, counts, limits, draw(keys, k_max, restarts), k_max, iterations


def same_partition(a, b):
    """Whether two labellings [..., N] agree up to the names of the clusters: bool [...]."""
    a, b = a.long(), b.long()
    return ((a[..., :, None] == a[..., None, :]) == (b[..., :, None] == b[..., None, :])).all(
        -1
    ).all(-1) & ((a < 0) == (b < 0)).all(-1)


def agree(found, expected, total):
    """Same partition, or another that is as good but for rounding; the same inertia."""
    labels, inertia = found
    assert labels.dtype == torch.int8
    assert labels.shape == expected[0].shape
    same = same_partition(labels, expected[0])
    error = (inertia - expected[1]).abs()
    assert (error <= 1e-9 * expected[1] + 1e-12 * total[:, None]).all()
    return same


def test_numba_finds_what_the_twin_finds():
    same = []
    for seed in range(20):
        images, dims = 8 + 4 * seed, 2 + 3 * seed
        given = arguments(*problems(60, images, dims, seed), 2 + seed % 7, 4)
        total = given[0].diagonal(dim1=1, dim2=2).sum(-1)
        same.append(agree(gram_kmeans_numba.solve(*given), gram_kmeans.solve(*given), total))
    same = torch.cat([part.flatten() for part in same])
    assert len(same) >= 5000
    assert same.double().mean() >= 0.999


@pytest.mark.parametrize(
    ("images", "k_max", "restarts"),
    [(1, 1, 1), (1, 2, 1), (2, 2, 2), (3, 3, 1), (7, 3, 2), (33, 3, 1), (64, 2, 1), (100, 2, 1)],
)
def test_triton_finds_what_the_twin_finds(images, k_max, restarts, device, poison):
    triton = pytest.importorskip("polylight.kernels.gram_kmeans_triton")
    num = 5 if images < 33 else 1
    given = arguments(*problems(num, images, 6, images, device), k_max, restarts)
    total = given[0].diagonal(dim1=1, dim2=2).sum(-1)
    found = triton.solve(*given)
    assert agree(found, gram_kmeans.solve(*given), total).all()
    for a, b in zip(found, triton.solve(*given), strict=True):
        assert torch.equal(a, b)


def test_triton_takes_eight_clusters(device, poison):
    triton = pytest.importorskip("polylight.kernels.gram_kmeans_triton")
    given = arguments(*problems(1, 17, 3, 1, device), 8, 1)
    total = given[0].diagonal(dim1=1, dim2=2).sum(-1)
    assert agree(triton.solve(*given), gram_kmeans.solve(*given), total).all()


def test_triton_says_how_many_points_it_takes():
    triton = pytest.importorskip("polylight.kernels.gram_kmeans_triton")
    assert triton.fits(1024, 8)
    assert triton.fits(512, 16)
    assert not triton.fits(1025, 8)
    assert not triton.fits(1024, 9)


@pytest.fixture(params=["numba", "triton"])
def solve(request):
    if request.param == "numba":
        return gram_kmeans_numba.solve
    return pytest.importorskip("polylight.kernels.gram_kmeans_triton").solve


def on(solve, device):
    return torch.device("cpu") if solve is gram_kmeans_numba.solve else device


def test_duplicates_fill_every_cluster(solve, device):
    points = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)[None]
    valid = torch.ones(1, 12, dtype=torch.bool)
    gram = centred_gram.centred_gram(points, valid)[0].to(on(solve, device))
    counts = torch.tensor([12], device=gram.device)
    given = arguments(gram, counts, 5, 2)
    labels, inertia = solve(*given)
    expected = gram_kmeans.solve(*given)
    torch.testing.assert_close(inertia, expected[1], rtol=1e-9, atol=1e-12)
    for k in range(1, 6):
        assert labels[0, k - 1].unique().tolist() == list(range(k))
    assert same_partition(labels[0, 2], torch.arange(12, device=gram.device) // 4)


def test_points_all_the_same_or_none(solve, device):
    gram = torch.zeros(2, 6, 6, dtype=torch.float64, device=on(solve, device))
    labels, inertia = solve(*arguments(gram, torch.tensor([6, 0], device=gram.device), 3, 2))
    assert (inertia == 0).all()
    assert [labels[0, k].unique().tolist() for k in range(3)] == [[0], [0, 1], [0, 1, 2]]
    assert (labels[1] == -1).all()


def test_nan_stays_with_its_neuron(solve, device):
    gram, counts = problems(3, 9, 4, 2, on(solve, device))
    clean = solve(*arguments(gram, counts, 3, 2))
    spoilt = gram.clone()
    spoilt[1, : counts[1], : counts[1]] = NAN
    labels, inertia = solve(*arguments(spoilt, counts, 3, 2))
    assert inertia[1].isnan().all()
    assert ((labels[1] >= 0) == (clean[0][1] >= 0)).all()
    assert (labels[1] < 3).all()
    for neuron in (0, 2):
        assert torch.equal(labels[neuron], clean[0][neuron])
        assert torch.equal(inertia[neuron], clean[1][neuron])


def test_numba_gives_the_same_bits_on_any_number_of_threads_and_in_any_company():
    gram, counts = problems(23, 30, 10)
    given = arguments(gram, counts, 6, 3)
    torch.set_num_threads(1)
    alone = gram_kmeans_numba.solve(*given)
    torch.set_num_threads(2)
    together = gram_kmeans_numba.solve(*given)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
    for neuron in range(23):
        row = slice(neuron, neuron + 1)
        one = gram_kmeans_numba.solve(*(part[row] for part in given[:4]), *given[4:])
        assert torch.equal(one[0][0], alone[0][neuron])
        assert torch.equal(one[1][0], alone[1][neuron])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("images", "dims"), [(1, 1), (2, 9), (7, 3), (33, 16), (64, 100)])
def test_centred_gram_against_numpy(images, dims, dtype):
    generator = torch.Generator().manual_seed(images)
    points = (5.0 + torch.randn(6, images, dims, generator=generator)).to(dtype)
    valid = torch.rand(6, images, generator=generator) < 0.8
    valid[1], valid[2] = False, True
    points[3] = points[3, :1]
    points[~valid] = NAN
    for module in (centred_gram, centred_gram_numba):
        gram, order = module.centred_gram(points, valid)
        for neuron in range(6):
            count = int(valid[neuron].sum())
            chosen = order[neuron, :count]
            assert sorted(order[neuron].tolist()) == list(range(images))
            assert valid[neuron, chosen].all()
            rows = points[neuron, chosen].double().numpy()
            rows = rows - rows.mean(0) if count else rows
            expected = np.zeros((images, images))
            expected[:count, :count] = rows @ rows.T if neuron != 3 else 0.0
            np.testing.assert_allclose(gram[neuron].numpy(), expected, rtol=1e-12, atol=1e-11)
            norms = gram[neuron].diagonal()[:count]
            assert (norms.diff() <= 1e-12 * norms.sum()).all()


def test_centred_gram_in_numba_is_that_of_the_twin_to_rounding():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 31, 50, generator=generator)
    valid = torch.rand(40, 31, generator=generator) < 0.8
    gram, order = centred_gram_numba.centred_gram(points, valid)
    expected, expected_order = centred_gram.centred_gram(points, valid)
    assert torch.equal(order, expected_order)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-12)
    torch.set_num_threads(1)
    assert torch.equal(centred_gram_numba.centred_gram(points, valid)[0], gram)


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


def test_no_place_for_what_is_compiled_is_the_users_to_mend(monkeypatch):
    def refuse(**options):
        raise RuntimeError("no locator available")

    monkeypatch.setattr(compiling, "njit", refuse)
    with pytest.raises(InputError, match=r"no locator available.*NUMBA_CACHE_DIR"):
        compiling.compiled()(len)
