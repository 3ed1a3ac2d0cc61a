"""Runs of networks whose images are not square RGB, from the command to the row."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from polylight.cli import main
from polylight.module import PolysemanticityModule
from polylight.networks import load_model
from polylight.networks.images import picture
from polylight.run.png import decode_png
from polylight.run.store import read_rows


def seeded(channels, height, width):
    """A subject of images [channels, height, width]; its head takes no other size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(6, 12, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * (height // 4) * (width // 4), 4),
        )
    half = (0.5,) * channels
    net.pretrained_cfg = {"input_size": (channels, height, width), "mean": half, "std": half}
    return net


def grey():
    return seeded(1, 24, 24)


def wide():
    return seeded(3, 16, 32)


def many():
    return seeded(5, 32, 20)


@pytest.mark.parametrize(
    ("name", "side", "window"), [("grey", 24, None), ("wide", 32, (16, 32)), ("many", 32, (32, 20))]
)
def test_what_is_stored_is_what_the_network_saw(name, side, window, tmp_path):
    tiny = [
        *("--model.subject", f"{__name__}:{name}", "--model.embedder", "tiny:embedder"),
        *("--model.max_steps", "12", "--model.max_images", "4", "--model.round_size", "2"),
        *("--model.pool_size", "8", "--model.reference_images", "16"),
        *("--trainer.accelerator", "cpu", "--data.neurons", json.dumps(["2:1", "5:0"])),
    ]
    assert not main(["fit", "--run_dir", str(tmp_path / "run"), *tiny])
    rows = read_rows(tmp_path / "run")
    model = load_model(f"{__name__}:{name}")
    assert [row.neuron for row in rows] == ["2:1", "5:0"]
    for row in rows:
        pictures = np.stack([decode_png(png) for png in row.image])
        assert pictures.shape == (4, side, side, 3)
        assert pictures.std() > 3
        inside = np.zeros((side, side), bool)
        height, width = window or (side, side)
        top, left = (side - height) // 2, (side - width) // 2
        inside[top : top + height, left : left + width] = True
        assert (pictures[:, ~inside] == 128).all()
        if name == "grey":
            assert (pictures == pictures[..., :1]).all()
        # Colours do not tell five channels.
        if name == "many":
            continue
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)[:, : model.channels] / 255
        seen = model.net[: int(row.layer) + 1](model.preprocess(images))[:, row.channel]
        expected = seen.mean((1, 2)) if seen.ndim > 1 else seen
        np.testing.assert_allclose(row.activation, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["fast", "lucid", "distill"])
def test_every_preset_shows_the_size_that_is_given(preset):
    settings = {"subject": f"{__name__}:grey", "embedder": "tiny:embedder", "preset": preset}
    module = PolysemanticityModule(**settings, image_size=24)
    assert module.cut(["5"])["5"].channels == 4
    assert module.subject.image_size == module.parametrization.size == 24
    assert module.reference_settings.parametrization == module.parametrization
    # A sixth of the image at the most, as at 128 px.
    assert module.augmentation.jitter <= 24 / 8
    assert module.reference_settings.augmentation.jitter == 3
    # And by itself.
    assert PolysemanticityModule(**settings).parametrization == module.parametrization


def test_pictures_of_many_channels_are_quantised_once():
    images = torch.randint(0, 256, (2, 5, 4, 4), dtype=torch.uint8)
    assert torch.equal(picture(images), picture(images.float()).round().to(torch.uint8))
