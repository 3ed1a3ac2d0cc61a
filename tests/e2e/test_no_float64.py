"""Where the device has no float64, all that needs it runs on the CPU, and gives the same."""

import numpy as np
import pytest
import tiny_runs
import torch
from lightning.pytorch.accelerators import MPSAccelerator
from no_float64 import DEVICE, emulated_device
from test_fit import fit
from test_reference import RECIPE, assert_same

from polylight.ascent.precision import resolve_precision
from polylight.clustering import cluster, gap_statistic, two_means
from polylight.kernels import has_float64, resolve_kernels, to_exact
from polylight.networks import load_model
from polylight.reference import make_reference
from polylight.run.manifest import read_manifest
from polylight.run.store import read_rows
from polylight.scoring import (
    PolysemanticityScore,
    mean_distance_score,
    paper_score,
    polysemanticity_score,
    score_uncertainty,
    semanticlens_score,
    silhouette_score,
    strength_gate,
    vendi_score,
    weighted_ms_score,
)
from polylight.scoring.scorer import Scorer

CPU = torch.device("cpu")
NEURONS = ["act3:0", "max(act3:3,-conv2:1@center)"]


@pytest.fixture
def device(monkeypatch):
    with emulated_device(monkeypatch) as device:
        yield device


def test_the_emulated_device_computes_and_refuses_float64(device):
    values = torch.arange(6.0).to(device).requires_grad_()
    assert values.device == device
    (gradient,) = torch.autograd.grad((values[:3] ** 2).sum(), values)
    assert gradient.device == device
    assert gradient.tolist() == [0, 2, 4, 0, 0, 0]
    assert torch.zeros(2, device=device).device == device
    with pytest.raises(TypeError, match="no float64"):
        values.double()
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, dtype=torch.float64, device=device)
    with pytest.raises(AssertionError, match="two devices"):
        values + torch.ones(6)


def test_an_apple_gpu_has_no_float64_and_runs_the_plain_twins():
    mps = torch.device("mps")
    assert not has_float64(mps)
    assert has_float64(CPU)
    assert has_float64(torch.device("cuda"))
    assert resolve_kernels("auto", mps) == "torch"
    assert resolve_precision("auto", mps) == "float32"
    assert to_exact(torch.ones(2)).dtype == torch.float64


def finished(device):
    """Neurons that the plain kernels have finished, and their rows."""
    made = tiny_runs.run(NEURONS, device=device, kernels="torch", cuda_graph=False)
    reference = tiny_runs.reference().to(device)
    scorer = Scorer(kernels="torch", max_clusters=4, restarts=4)
    neurons = [made[name] for name in sorted(made)]
    rows = scorer.rows(neurons, reference, max_images=6, seed=0, seconds_per_step=1.0)
    return neurons, rows


def test_neurons_are_made_and_scored_as_on_the_cpu(monkeypatch):
    neurons, rows = finished(CPU)
    with emulated_device(monkeypatch) as device:
        again, rows_again = finished(device)
        assert all(neuron.images.device == device for neuron in again)
    assert len(rows) == 2
    for one, other in zip(neurons, again, strict=True):
        assert torch.equal(one.images, other.images.cpu())
        assert one.steps == other.steps
    for one, other in zip(rows, rows_again, strict=True):
        for name in one.__dataclass_fields__:
            value, expected = getattr(other, name), getattr(one, name)
            if isinstance(expected, float) or getattr(expected, "dtype", None) == np.float64:
                # The emulation takes sums of products apart, for which the last bit may differ.
                np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12, err_msg=name)
            else:
                np.testing.assert_equal(value, expected, err_msg=name)


def test_the_reference_is_the_same(monkeypatch):
    models = load_model("tiny:subject"), load_model("tiny:embedder")
    monkeypatch.setattr("polylight.kernels.choice.resolve_kernels", lambda *_: "torch")
    monkeypatch.setattr("polylight.ascent.pool.resolve_kernels", lambda *_: "torch")
    plain = make_reference(*models, RECIPE, CPU)
    with emulated_device(monkeypatch) as device:
        assert_same(make_reference(*models, RECIPE, device), plain)


def scores(device):
    """What public functions give for tensors on a device."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 12, 5, generator=generator).to(device)
    strength = (torch.rand(3, 12, generator=generator) + 1).to(device)
    keys = torch.arange(3).to(device)
    valid = (torch.arange(12) < torch.tensor([[12], [9], [3]])).to(device)
    plain = {"valid": valid, "keys": keys, "k_max": 4, "restarts": 4, "kernels": "torch"}
    score = polysemanticity_score(points, strength, **plain)
    metric = PolysemanticityScore(key=3).to(device)
    metric.update(points[0], strength[0])
    halves = two_means(points, valid, keys, kernels="torch")
    return [
        *score,
        *score_uncertainty(points, score, strength, draws=8, **plain),
        *cluster(points, **plain),
        *gap_statistic(points, valid, keys, null_samples=8, kernels="torch"),
        halves,
        strength_gate(strength, valid),
        metric.compute(),
        mean_distance_score(points, valid),
        weighted_ms_score(points, strength, valid),
        vendi_score(points, valid),
        silhouette_score(points, halves, valid),
        semanticlens_score(points, halves, valid),
        paper_score(points, halves, torch.full_like(keys, 2), valid),
    ]


def test_public_functions_take_tensors_of_such_a_device(monkeypatch):
    monkeypatch.setattr("polylight.scoring.base.polysemanticity_score", plain_score)
    expected = scores(CPU)
    with emulated_device(monkeypatch) as device:
        found = scores(device)
    assert len(found) == len(expected) > 25
    for one, other in zip(found, expected, strict=True):
        assert one.device == CPU
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)


def plain_score(*args, **settings):
    return polysemanticity_score(*args, **settings, kernels="torch")


def test_a_run_with_accelerator_mps_goes_through(monkeypatch, tmp_path):
    for name, value in (
        ("is_available", lambda: True),
        ("auto_device_count", lambda: 1),
        ("parse_devices", lambda devices: [0]),
        ("get_parallel_devices", lambda devices: [DEVICE]),
    ):
        monkeypatch.setattr(MPSAccelerator, name, staticmethod(value))
    monkeypatch.setattr(MPSAccelerator, "setup_device", lambda self, device: None)
    with emulated_device(monkeypatch):
        assert fit(tmp_path, ["act3:0"], "--trainer.accelerator", "mps") == 0
    manifest = read_manifest(tmp_path)
    assert manifest.device["name"] == DEVICE.type
    assert manifest.settings["precision"] == "float32"
    assert read_rows(tmp_path)[0].status == "ok"
