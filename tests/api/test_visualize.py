"""Images alone are those of a score."""

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import polylight
from polylight import InputError

TINY = {
    "images": 6,
    "image_size": 32,
    "max_steps": 12,
    "pool_size": 6,
    "reference_images": 24,
    "device": "cpu",
}


def test_images_are_those_that_a_score_makes():
    net = tiny.subject()
    neurons = ["conv2:3", "act3:0-1", "max(conv2:1,conv2:5)"]
    found = polylight.visualize(net, neurons, **TINY)
    run = polylight.score(net, neurons, embedder=tiny.embedder(), **TINY)
    assert list(found) == ["conv2:3", "act3:0", "act3:1", "max(conv2:1,conv2:5)"]
    for name, seen in found.items():
        assert seen.images.shape == (6, 32, 32, 3)
        assert np.array_equal(seen.images, run[name].images)
        assert np.array_equal(seen.activations, run[name].activations)
        assert seen.baseline == run[name].row.baseline
        assert seen.pictures[0].size == (32, 32)


def test_no_embedder_is_loaded_and_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("polylight.networks.load.load_model", lambda *_: pytest.fail("loads"))
    net = tiny.subject().train()
    state = torch.get_rng_state()
    assert len(polylight.visualize(net, "act3:0", **TINY)) == 1
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_error():
    with pytest.raises(InputError, match=r"visualize\(\) has no setting 'embedder'"):
        polylight.visualize(tiny.subject(), "act3:0", embedder="resnet18", **TINY)
    with pytest.raises(InputError, match=r"no layer 'act9'"):
        polylight.visualize(tiny.subject(), "act9:0", **TINY)
    with pytest.raises(InputError, match=r"meta device"):
        polylight.visualize(nn.Conv2d(3, 4, 3, device="meta"), "act9:0", **TINY)
