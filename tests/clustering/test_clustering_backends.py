import importlib.util
import subprocess
import sys

import pytest
import torch

from polylight.clustering import cluster
from polylight.clustering.library import solve_each
from polylight.errors import InputError


def separated(num=8, images=30, dims=16, device="cpu"):
    """Clouds far apart: 1 to 4 of them."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(num, images, dims, generator=generator)
    truth = torch.arange(images) % (1 + torch.arange(num)[:, None] % 4)
    points += 10.0 * torch.eye(dims)[truth]
    valid = torch.rand(num, images, generator=generator) < 0.9
    valid[-1], valid[-2, 1:] = False, False
    return points.to(device), valid.to(device), torch.arange(num, device=device)


def same_clusters(backend, device):
    points, valid, keys = separated(device=device)
    found = cluster(points, valid=valid, keys=keys, restarts=4, backend=backend)
    reference = cluster(points, valid=valid, keys=keys, restarts=4)
    assert reference.k.tolist() == [1, 2, 3, 4, 1, 2, 1, 1]
    assert torch.equal(found.k, reference.k)
    assert torch.equal(found.labels, reference.labels)
    chosen = (reference.k - 1)[:, None]
    for a, b in ((found.bic, reference.bic), (found.inertia, reference.inertia)):
        torch.testing.assert_close(
            a.gather(1, chosen), b.gather(1, chosen), rtol=1e-9, atol=0, equal_nan=True
        )
        assert torch.equal(a.isnan(), b.isnan())


def test_faiss_finds_the_same_clusters(capfd):
    pytest.importorskip("faiss", reason="faiss is not installed")
    same_clusters("faiss", "cpu")
    output = capfd.readouterr()
    assert output.out == output.err == ""


@pytest.mark.gpu
def test_cuml_finds_the_same_clusters():
    pytest.importorskip("cuml", reason="cuML is not installed: pip install polylight[cuml]")
    same_clusters("cuml", "cuda")


def test_faiss_fills_the_clusters_of_duplicates():
    pytest.importorskip("faiss", reason="faiss is not installed")
    points = torch.eye(8).repeat_interleave(4, dim=0)[:12][None]
    found = cluster(
        points, valid=torch.ones(1, 12).bool(), keys=torch.tensor([0]), backend="faiss", restarts=2
    )
    assert found.k.item() == 3
    assert found.labels[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_library_keeps_the_best_start_and_fills_empty_clusters():
    points = torch.tensor([[-3.0], [-2.0], [2.0], [3.0]], dtype=torch.float64)[None]
    answers = iter([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    labels, inertia = solve_each(
        points,
        torch.ones(1, 4, dtype=torch.bool),
        torch.tensor([0]),
        k_max=2,
        restarts=3,
        run=lambda rows, start: torch.tensor(next(answers)),
    )
    assert labels[0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert inertia[0].tolist() == [26.0, 1.0]


@pytest.mark.parametrize(
    ("backend", "message"),
    [("faiss", r"polylight\[faiss\].*polylight\[faiss-cu13\]"), ("cuml", r"polylight\[cuml\]")],
)
def test_missing_library_names_its_extra(backend, message, monkeypatch):
    monkeypatch.setitem(sys.modules, backend, None)
    monkeypatch.setitem(sys.modules, f"{backend}.cluster", None)
    points, valid, keys = separated()
    with pytest.raises(InputError, match=message):
        cluster(points, valid=valid, keys=keys, backend=backend)


def test_libraries_are_imported_only_when_asked_for():
    code = (
        "import sys, polylight.clustering; "
        "sys.exit(bool({'faiss', 'cuml', 'cupy', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("cuml") is None, reason="cuML is not installed")
def test_cuml_needs_the_device():
    points, valid, keys = separated()
    with pytest.raises(InputError, match="CUDA device, got cpu"):
        cluster(points, valid=valid, keys=keys, backend="cuml")
