"""The examples of the docs, on tiny settings."""

import sys
from pathlib import Path

import pytest
import tiny
import torch

from polylight.networks.dictionary import Dictionary
from polylight.networks.taps import LayerActivation
from polylight.neurons import Address

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def few():
    """Settings with which a neuron takes a moment."""
    climb = {"images": 2, "max_steps": 3, "pool_size": 4}
    return climb | {"embedder": tiny.embedder(), "reference_images": 4}


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name):
        # Another test's, perhaps of the same name.
        sys.modules.pop(name, None)
        return __import__(name)

    return load


@pytest.mark.slow
def test_an_autoencoder_is_trained_and_compared(example, tmp_path, monkeypatch):
    sae = example("sae")
    monkeypatch.chdir(tmp_path)
    table = sae.main(
        Path("runs/sae"),
        layer="blocks.2",
        count=2,
        latents=24,
        k=4,
        steps=30,
        num_crops=4,
        image_size=64,
        progress=False,
        **few(),
    )
    assert table["kind"].value_counts().to_dict() == {"channel": 2, "latent": 2}
    layers = [
        name.rpartition("[" if name.startswith("sae") else ":")[0] for name in table["neuron"]
    ]
    assert set(layers) == {"blocks.2", 'sae(blocks.2,"runs/sae.safetensors")'}


def test_the_encoder_is_read_as_it_was_trained(example, tmp_path):
    sae = example("sae")
    inputs = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0)).relu()
    net, explained, share = sae.train(inputs / 2, latents=24, k=4, steps=200)
    assert 0.3 < explained < 1
    assert share.shape == (24,)
    net.save(tmp_path / "e.safetensors", 2.0)
    dictionary = Dictionary.read(Address.parse(f'sae(x,"{tmp_path}/e.safetensors")'), 12)
    with torch.no_grad():
        expected = net.encode(inputs[:64] / 2)
    found = dictionary(LayerActivation(inputs[:64], inputs[:64])).post
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*logging interval")
def test_trainings_are_drawn(example, tmp_path):
    curve = example("training_curve")
    picture = tmp_path / "curve.png"
    runs = curve.main(
        picture,
        epochs=1,
        every_n_epochs=1,
        optimizers=["SGD", "Adam, weight decay"],
        neurons_per_layer=2,
        **few(),
    )
    assert picture.stat().st_size > 10000
    for history, accuracy in runs.values():
        assert 0.1 < accuracy <= 1
        assert history["epoch"].to_pylist() == [0] * 4 + [1] * 4
