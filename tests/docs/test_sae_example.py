"""What the example trains is what polylight reads of its file."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polylight.networks.encoder import read_encoder
from polylight.neurons import Address, Dictionary

PATH = Path(__file__).parents[2] / "docs" / "examples" / "sae.py"


def load_example():
    spec = importlib.util.spec_from_file_location("sae_example", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_the_encoder_of_the_example_is_read_as_it_was_trained(tmp_path):
    example = load_example()
    generator = torch.Generator().manual_seed(0)
    # Two of twenty directions at a time, of a large scale and far from zero.
    parts = torch.rand(1500, 20, generator=generator)
    parts = parts * (parts >= parts.topk(2).values[:, 1:])
    x = 30 * parts @ torch.randn(20, 10, generator=generator) + 100
    with torch.enable_grad():
        net, explained = example.train(x, 40, 2, 150)
    assert 0.6 < explained < 1
    left = (net(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(left) == pytest.approx(1 - explained, rel=1e-2)
    file = tmp_path / "encoder.safetensors"
    save_file({n: p.detach().contiguous() for n, p in net.named_parameters()}, file, {"k": "2"})
    found = read_encoder(Dictionary("sae", Address("conv"), str(file)))(x)
    # In units of the activations the latents are as they were trained, and differ in rounding.
    torch.testing.assert_close(found, net.encode(x), rtol=1e-3, atol=1e-2)
    assert ((found > 0).sum(1) <= 2).all()


def test_crops_need_no_folder():
    photos = load_example().load_photos(None, 3)
    assert photos.shape == (3, 3, 224, 224)
    assert photos.std() > 0.1
