"""Directions and latents of sparse autoencoders, read off a layer."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import polylight
from polylight.ascent.diversity import PreviousOptima
from polylight.ascent.objective import Targets, make_targets
from polylight.errors import InputError
from polylight.networks.dictionary import Dictionary
from polylight.networks.live import model_from_module
from polylight.networks.subject import Subject
from polylight.networks.taps import LayerActivation
from polylight.neurons import Address, Component, Neuron
from polylight.run.manifest import read_manifest

TINY = {"images": 2, "max_steps": 6, "image_size": 32, "pool_size": 8, "progress": False}
N, C = 10, 16


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save(path, tensors, **metadata):
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)
    return path


def address(kind, path, layer="conv2"):
    return Address.parse(f'{kind}({layer},"{path}")')


def reading(dictionary, maps):
    found = dictionary(LayerActivation(maps, maps))
    return found.pre.double().numpy(), found.post.double().numpy()


ENCODER = {
    "W_enc": numbers(C, N),
    "b_enc": numbers(N, seed=1),
    "b_dec": numbers(C, seed=2),
}


def expected(maps, activation):
    """Latents in float64, place by place."""
    w, b, centre = (ENCODER[name].double().numpy() for name in ("W_enc", "b_enc", "b_dec"))
    places = np.moveaxis(maps.double().numpy(), 1, -1)
    z = np.empty((*places.shape[:-1], N))
    for place in np.ndindex(places.shape[:-1]):
        z[place] = (places[place] - centre) @ w + b
    kept = np.zeros_like(z)
    for place in np.ndindex(places.shape[:-1]):
        kept[place] = activation(z[place])
    return np.moveaxis(z, -1, 1), np.moveaxis(kept, -1, 1)


def top3(z):
    kept = np.zeros_like(z)
    best = np.argsort(z)[-3:]
    kept[best] = np.maximum(z[best], 0)
    return kept


THRESHOLD = numbers(N, seed=3).abs()


@pytest.mark.parametrize(
    ("more", "metadata", "activation"),
    [
        ({}, {}, lambda z: np.maximum(z, 0)),
        ({}, {"k": "3"}, top3),
        ({"k": torch.tensor(3)}, {}, top3),
        ({"threshold": THRESHOLD}, {}, lambda z: np.where(z > THRESHOLD.double().numpy(), z, 0)),
        ({"log_threshold": THRESHOLD.log()}, {}, lambda z: z * (z > THRESHOLD.double().numpy())),
    ],
    ids=["ReLU", "TopK", "TopK as a tensor", "JumpReLU", "JumpReLU by its logarithm"],
)
@pytest.mark.parametrize("shape", [(3, C, 4, 5), (3, C, 7), (3, C)])
def test_latents_are_those_of_the_encoder(tmp_path, more, metadata, activation, shape):
    path = save(tmp_path / "e.safetensors", ENCODER | more, **metadata)
    maps = numbers(*shape, seed=4)
    pre, post = reading(Dictionary.read(address("sae", path), C), maps)
    wanted_pre, wanted_post = expected(maps, activation)
    np.testing.assert_allclose(pre, wanted_pre, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(post, wanted_post, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "tensors",
    [
        {
            "encoder.weight": ENCODER["W_enc"].mT,
            "encoder.bias": ENCODER["b_enc"],
            "b_dec": ENCODER["b_dec"],
            "decoder.weight": numbers(C, N),
            "decoder.bias": numbers(C),
        },
        {
            "encoder.weight": ENCODER["W_enc"].mT,
            "encoder.bias": ENCODER["b_enc"],
            "bias": ENCODER["b_dec"],
        },
        {
            "weight": ENCODER["W_enc"].mT,
            "bias": ENCODER["b_enc"] - ENCODER["W_enc"].mT @ ENCODER["b_dec"],
        },
    ],
    ids=["a linear layer", "dictionary_learning", "a linear layer alone"],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_encoders_are_read_under_the_names_that_people_use(tmp_path, tensors, suffix):
    path = tmp_path / f"e.{suffix}"
    if suffix == "pt":
        torch.save(tensors, path)
    else:
        save(path, tensors)
    maps = numbers(2, C, 3, 3, seed=5)
    pre, post = reading(Dictionary.read(address("sae", path), C), maps)
    wanted_pre, wanted_post = expected(maps, lambda z: np.maximum(z, 0))
    np.testing.assert_allclose(pre, wanted_pre, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(post, wanted_post, rtol=1e-5, atol=1e-5)


def test_the_input_is_not_centred_where_the_file_says_so(tmp_path):
    path = save(tmp_path / "e.safetensors", ENCODER, apply_b_dec_to_input="false")
    maps = numbers(2, C, seed=5)
    pre, _ = reading(Dictionary.read(address("sae", path), C), maps)
    wanted = maps.double() @ ENCODER["W_enc"].double() + ENCODER["b_enc"].double()
    np.testing.assert_allclose(pre, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_the_settings_of_saelens_stand_beside_the_file(tmp_path):
    path = save(tmp_path / "sae_weights.safetensors", ENCODER)
    said = {"activation_fn_kwargs": {"k": 3}, "apply_b_dec_to_input": True, "architecture": "topk"}
    (tmp_path / "cfg.json").write_text(json.dumps(said))
    _, post = reading(Dictionary.read(address("sae", path), C), numbers(2, C, 3, 3))
    np.testing.assert_allclose(post, expected(numbers(2, C, 3, 3), top3)[1], rtol=1e-5, atol=1e-5)
    (tmp_path / "cfg.json").write_text("[1]")
    with pytest.raises(InputError, match=r"cfg\.json is no configuration of an encoder"):
        Dictionary.read(address("sae", path), C)


def subject(layers, size=32):
    return Subject(model_from_module(tiny.subject(), input_size=32), layers, size)


def test_directions_along_the_axes_are_the_channels(tmp_path):
    path = save(tmp_path / "v.safetensors", {"anything": torch.eye(C)})
    cut = subject(["conv2", f'direction(conv2,"{path}")', "act3"])
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = cut(images)
    torch.testing.assert_close(found[1].post, found[0].post, rtol=1e-6, atol=1e-6)
    assert found[1].pre is found[1].post
    names = list(cut.shapes)
    assert cut.shapes[names[1]] == cut.shapes["conv2"]
    # Images are compared in the layer that a dictionary reads.
    assert torch.equal(found[1].pooled(), found[0].pooled())


def test_the_gradient_is_that_of_a_direct_computation(tmp_path):
    path = save(tmp_path / "e.safetensors", ENCODER)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cut = subject([f'sae(conv2,"{path}")'])
    ours = images.clone().requires_grad_()
    cut(ours)[0].post[:, 4].mean((1, 2)).sum().backward()
    net = tiny.subject().double()
    theirs = images.double().requires_grad_()
    model = model_from_module(tiny.subject(), input_size=32)
    maps = net[:3]((theirs - cut.mean.double()) / cut.std.double())
    w, b, centre = (ENCODER[name].double() for name in ("W_enc", "b_enc", "b_dec"))
    z = F.relu(torch.einsum("bchw,cn->bnhw", maps - centre[:, None, None], w) + b[:, None, None])
    z[:, 4].mean((1, 2)).sum().backward()
    assert model.channels == 3
    assert theirs.grad.abs().max() > 0
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-8)


def test_an_image_is_read_alike_in_any_batch(tmp_path):
    path = save(tmp_path / "e.safetensors", ENCODER, k="2")
    cut = subject([f'sae(conv2,"{path}")'])
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut(images)[0].post[:8], cut(images[:8])[0].post)


def test_tokens_and_positions_are_those_of_the_layer(tmp_path):
    class Tokens(nn.Module):
        """A class token before the patches of a grid."""

        num_prefix_tokens = 1

        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 8, 8)
            self.norm = nn.LayerNorm(8)
            self.cls = nn.Parameter(torch.zeros(1, 1, 8))

        def forward(self, x):
            tokens = self.patch(x).flatten(2).mT
            return self.norm(torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1))

    path = save(tmp_path / "v.safetensors", {"vectors": numbers(5, 8), "other": numbers(1)})
    model = model_from_module(Tokens(), input_size=32)
    layer = f'direction(norm,"{path}")'
    shape = Subject(model, [layer], 32).shapes[layer]
    assert (shape.channels, shape.size, shape.prefix) == (5, (4, 4), 1)
    found = polylight.visualize(Tokens(), f"{layer}[2]@cls", input_size=32, **TINY)
    assert list(found) == [f"{layer}[2]@cls"]


def test_the_deviation_of_a_vector_is_that_of_independent_channels():
    weight, std = numbers(3, C), numbers(C, seed=1).abs()
    dictionary = Dictionary(weight, torch.zeros(3), rectified=False)
    draws = numbers(20000, C, seed=2) * std
    torch.testing.assert_close(
        dictionary.deviation(std), (draws @ weight.mT).std(0), rtol=0.03, atol=0
    )


def test_repulsion_is_scaled_by_the_deviation_of_what_is_climbed(tmp_path):
    path = save(tmp_path / "v.safetensors", {"vectors": 3 * torch.eye(C)[:2]})
    cut = subject(["conv2", f'direction(conv2,"{path}")'])
    std = numbers(2, C).abs()
    std[1] = std[0]
    found = cut.deviations(std)
    assert torch.equal(found[0], std[0])
    torch.testing.assert_close(found[1, :2], 3 * std[1, :2])
    # The price of being like the finished image is in units of what is climbed.
    names, components = list(cut.shapes), [Component(n, 1) for n in cut.shapes]
    targets = make_targets([Neuron((c,)) for c in components], cut.shapes, {}, 1)
    optima = PreviousOptima(cut.channels, torch.zeros(2, C), std, found, 2, 1)
    features, both = numbers(1, C, seed=7), torch.ones(2)
    for index in range(2):
        one = Targets(*(t[index : index + 1] for t in targets))
        optima.remember(index, features, one, torch.ones(1, dtype=torch.bool), {index})
    price = optima.penalty(features.expand(2, -1), targets, torch.arange(2), both, {0, 1})
    assert names[1].startswith("direction(")
    torch.testing.assert_close(price[1], 3 * price[0])


@pytest.mark.parametrize(
    ("kind", "tensors", "message"),
    [
        ("direction", {"v": numbers(4, C + 1)}, f"have {C + 1} numbers.*'conv2' has {C} channels"),
        (
            "direction",
            {"v": numbers(C)},
            r"holds v \[16\]; expected one tensor \[vectors, channels",
        ),
        ("direction", {"v": numbers(4, C), "w": numbers(4, C)}, "expected one tensor"),
        ("direction", {"v": numbers(4, C) * torch.nan}, "not finite"),
        ("sae", {"v": numbers(4, C)}, r"expected the weights of an encoder"),
        ("sae", {**ENCODER, "b_enc": numbers(N + 1)}, "expected the weights of an encoder"),
        ("sae", {**ENCODER, "b_dec": numbers(C + 1)}, "expected the weights of an encoder"),
        ("sae", {**ENCODER, "threshold": numbers(2)}, "expected the weights of an encoder"),
        ("sae", {**ENCODER, "b_gate": numbers(N)}, r"a gated autoencoder \(b_gate\)"),
        ("sae", {**ENCODER, "k": torch.tensor(0)}, "says k = 0; expected how many"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, kind, tensors, message):
    path = save(tmp_path / "d.safetensors", tensors)
    with pytest.raises(InputError, match=message):
        polylight.visualize(tiny.subject(), f'{kind}(conv2,"{path}")[0]', **TINY)


def test_a_file_that_is_not_there_or_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.safetensors"):
        polylight.visualize(tiny.subject(), 'sae(conv2,"nowhere.safetensors")[0]', **TINY)
    (tmp_path / "e.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        polylight.visualize(tiny.subject(), f'sae(conv2,"{tmp_path}/e.safetensors")[0]', **TINY)
    path = save(tmp_path / "v.safetensors", {"v": numbers(4, C)})
    with pytest.raises(InputError, match=r"asks for channel 4, but layer .* has channels 0 to 3"):
        polylight.visualize(tiny.subject(), f'direction(conv2,"{path}")[0-4]', **TINY)


def test_a_run_knows_what_its_files_held(tmp_path):
    path = save(tmp_path / "e.safetensors", ENCODER)
    layer = f'sae(conv2,"{path}")'
    run_dir = tmp_path / "run"
    settings = TINY | {"embedder": tiny.embedder(), "reference_images": 4, "run_dir": run_dir}
    run = polylight.score(tiny.subject(), [f"{layer}[0-1]", "conv2:0"], **settings)
    assert set(run.to_pandas()["neuron"]) == {f"{layer}[0]", f"{layer}[1]", "conv2:0"}
    assert run[f"{layer}[1]"].row.layer == layer
    assert run[f"{layer}[1]"].row.channel == 1
    # Seen as the neurons of the layer are seen.
    assert run[f"{layer}[1]"].row.layer_input.shape == run["conv2:0"].row.layer_input.shape
    before = dict(read_manifest(run_dir).dictionaries)
    assert list(before) == [layer]
    # A run may be extended without the file, and with it.
    polylight.score(tiny.subject(), "conv2:1", **settings)
    polylight.score(tiny.subject(), f"{layer}[2]", **settings)
    assert read_manifest(run_dir).dictionaries == before
    save(path, ENCODER | {"b_enc": ENCODER["b_enc"] + 1})
    with pytest.raises(InputError, match="holds a run of other settings"):
        polylight.score(tiny.subject(), f"{layer}[3]", **settings)
