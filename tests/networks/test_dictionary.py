"""Directions and sparse autoencoders as layers, beside plain arithmetic in float64."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

from polylight import InputError
from polylight.embedding.layer_input import LayerInput
from polylight.networks.dictionary import with_dictionaries
from polylight.networks.live import model_from_module
from polylight.networks.subject import Subject
from polylight.neurons import Address, LayerShape, layers_of, parse_neurons
from polylight.reference import ReferenceSettings

SIZE = 32
LATENTS = 12


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def subject(net, layers):
    model = with_dictionaries(model_from_module(net, input_size=SIZE), layers, SIZE)
    return Subject(model, layers, SIZE)


class Attention(nn.Module):
    """Tokens of patches and one more, a module that runs twice and returns a tuple and a dict."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.twice = TwoOutputs()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        for _ in range(2):
            tokens, _ = self.twice(tokens)
        return self.head(tokens[:, 0])


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        out = self.linear(x)
        return out, {"both": out * 2}


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x).movedim(1, -1)).relu().mean((1, 2)))


NETWORKS = [
    (tiny.subject, "conv1", 8),
    (tiny.subject, "act3", 24),
    (tiny.subject, "fc", 10),
    # Norms that are folded away, the convolution before one, a rectifier in place.
    *((tiny.normed, name, 8) for name in "012"),
    *((tiny.normed, name, 12) for name in "345"),
    (Attention, "twice[0]#0", 6),
    (Attention, "twice#1.both", 6),
    (ChannelsLast, "norm", 6),
]


@pytest.mark.parametrize(("make", "base", "channels"), NETWORKS)
def test_unit_vectors_are_the_channels(make, base, channels):
    torch.manual_seed(0)
    net = make()
    save_file({"vectors": torch.eye(channels)}, "unit.safetensors")
    layer = f'direction({base},"unit.safetensors")'
    images = torch.rand(3, 3, SIZE, SIZE).requires_grad_()
    both = []
    for name in (layer, base):
        activation = subject(net, [name])(images)[0]
        seed = randn(*activation.post.shape)
        both.append((activation.post, *torch.autograd.grad(activation.post, images, seed)))
        assert activation.prefix == (make is Attention)
    for virtual, real in zip(*both, strict=True):
        torch.testing.assert_close(virtual, real, rtol=1e-5, atol=1e-6)
    read = subject(net, [layer, base])
    assert read.shapes[layer]._replace(depth=0) == read.shapes[base]._replace(depth=0)
    assert read.climbable() == [layer, base]


def encoded(activation, state, *, threshold=None, k=None, subtracts=True):
    """Pre- and post-activations of latents of [B, C, H, W] in float64."""
    x = activation.double().movedim(1, -1)
    if subtracts:
        x = x - state["b_dec"].double()
    pre = x @ state["W_enc"].double() + state["b_enc"].double()
    post = pre.clamp_min(0)
    if threshold is not None:
        post = post * (pre > threshold.double())
    if k is not None:
        least = pre.sort(-1, descending=True).values[..., k - 1 : k]
        post = post * (pre >= least)
    return pre.movedim(-1, 1), post.movedim(-1, 1)


SAE = {
    "W_enc": randn(16, LATENTS, seed=1) / 4,
    "b_enc": randn(LATENTS, seed=2) / 4,
    "b_dec": randn(16, seed=3) / 4,
}
THRESHOLD = randn(LATENTS, seed=4).abs()


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "not subtracted"])
def test_latents_are_those_of_float64(kind):
    state, metadata, how = dict(SAE), {"activation": kind}, {}
    if kind == "topk":
        metadata["k"], how["k"] = "3", 3
    elif kind == "jumprelu":
        state["threshold"] = how["threshold"] = THRESHOLD
    elif kind == "not subtracted":
        metadata, how["subtracts"] = {"apply_b_dec_to_input": "False"}, False
    save_file(state, "sae.safetensors", metadata)
    layer = 'sae(conv2,"sae.safetensors")'
    read = subject(tiny.subject(), [layer, "conv2"])
    found = read(torch.rand(4, 3, SIZE, SIZE).requires_grad_())
    pre, post = encoded(found[1].post, SAE, **how)
    torch.testing.assert_close(found[0].pre.double(), pre, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].post.double(), post, rtol=1e-4, atol=1e-5)
    assert 0 < (post > 0).double().mean() < 0.9
    # What is cut off has a gradient before the rectifier.
    assert found[0].pre.requires_grad
    half = read.cast(torch.bfloat16)(torch.rand(4, 3, SIZE, SIZE))[0].post
    assert half.dtype == torch.bfloat16


def test_names_of_torch_saelens_and_overcomplete_say_the_same():
    layer = 'sae(conv2,"{}")'
    norm = {
        "weight": randn(LATENTS, seed=5).abs() + 0.5,
        "bias": randn(LATENTS, seed=6),
        "running_mean": randn(LATENTS, seed=7),
        "running_var": randn(LATENTS, seed=8).abs() + 0.5,
    }
    ours = "encoder.final_block"
    overcomplete = {
        f"{ours}.0.weight": SAE["W_enc"].T.contiguous(),
        f"{ours}.0.bias": SAE["b_enc"],
        **{f"{ours}.1.{name}": value for name, value in norm.items()},
        f"{ours}.1.num_batches_tracked": torch.tensor(3),
        "thresholds": THRESHOLD.log(),
        "k": torch.tensor(3),
    }
    scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
    bias = (SAE["b_enc"] - norm["running_mean"]) * scale + norm["bias"]
    plain = {
        "encoder.weight": (SAE["W_enc"] * scale).T.contiguous(),
        "encoder.bias": bias + (SAE["W_enc"].T * scale[:, None]) @ SAE["b_dec"],
        "decoder.bias": SAE["b_dec"],
        "threshold": THRESHOLD,
    }
    torch.save({"state_dict": overcomplete}, "overcomplete.pt")
    save_file(plain, "plain.safetensors", {"k": "3"})
    lens = {"W_enc": SAE["W_enc"] * scale, "b_enc": bias, "threshold": THRESHOLD}
    save_file(lens, "lens.safetensors")
    Path("cfg.json").write_text(json.dumps({"activation_fn_kwargs": {"k": 3}}))
    layers = [layer.format(f) for f in ("overcomplete.pt", "plain.safetensors", "lens.safetensors")]
    read = subject(tiny.subject(), layers)(torch.rand(2, 3, SIZE, SIZE))
    assert (read[0].post > 0).any()
    for other in (read[1], read[2]):
        torch.testing.assert_close(other.post, read[0].post, rtol=1e-4, atol=1e-4)


def test_a_neuron_and_a_direction_are_compared_in_the_same_view():
    save_file({"vectors": torch.eye(16)}, "unit.safetensors")
    layer = 'direction(conv2,"unit.safetensors")'
    model = model_from_module(tiny.subject(), input_size=SIZE)
    more = with_dictionaries(model, [layer, "conv2"], SIZE)
    view = LayerInput(more, SIZE)
    assert view.source(layer) == view.source("conv2") == "conv2"
    assert view.calls == LayerInput(model, SIZE).calls
    keys = {ReferenceSettings().key(one, model) for one in (model, more)}
    save_file({"vectors": -torch.eye(16)}, "unit.safetensors")
    keys |= {ReferenceSettings().key(with_dictionaries(model, [layer], SIZE), model)}
    assert len(keys) == 3
    assert more.weights_hash == model.weights_hash
    assert with_dictionaries(model, ["conv2"], SIZE) is model


def test_dictionaries_in_the_grammar():
    sae, direction = 'sae(blocks.4,"my file.safetensors")', 'direction(attn[2]#0,"v.pt")'
    layers = {sae: LayerShape(20, (4, 4)), direction: LayerShape(5, ()), "a": LayerShape(3, ())}

    def parsed(text):
        return [str(neuron) for neuron in parse_neurons([text], layers)]

    assert parsed('sae( blocks.4, "my file.safetensors" ) [0-1,12]') == [
        f"{sae}[0]",
        f"{sae}[1]",
        f"{sae}[12]",
    ]
    assert parsed(f"-{sae}[3]@1x2") == [f"-{sae}[3]@1x2"]
    assert parsed(f"{direction}[*]") == [f"{direction}[{i}]" for i in range(5)]
    both = f"max({direction}[1],-a:2,{sae}[3]@center)"
    assert parsed(both) == [both]
    assert layers_of([both]) == [direction, "a", sae]
    address = Address.parse(direction)
    assert (address.call, str(address)) == (2, direction)
    assert address.dictionary.base == Address("attn", 2, "0")
    assert "." not in address.module
    with pytest.raises(InputError, match=r"channel 20, but .* channels 0 to 19"):
        parsed(f"{sae}[20]")
    with pytest.raises(InputError, match="no index is given"):
        parsed(sae)
    with pytest.raises(InputError, match=r"Write .* sae\(blocks.4"):
        parsed("sae(blocks.4,file)[3]")


def saved(state, **metadata):
    return lambda: save_file(state, "f.safetensors", metadata or None)


NAN = torch.eye(16).index_fill(0, torch.tensor([3]), torch.nan)


@pytest.mark.parametrize(
    ("layer", "save", "message"),
    [
        ('sae(conv2,"f.safetensors")', lambda: None, "no file 'f.safetensors'"),
        ('sae(conv2,"f.safetensors")', saved({"w": torch.eye(3)}), "holds w.*expected the encoder"),
        ('direction(conv2,"f.safetensors")', saved({"a": torch.ones(3)}), "expected one tensor"),
        (
            'direction(conv2,"f.safetensors")',
            saved({"a": torch.eye(3), "b": torch.eye(3)}),
            "the only one or called vectors",
        ),
        (
            'direction(conv2,"f.safetensors")',
            saved({"vectors": torch.ones(5, 17)}),
            "the 5 direction vectors .* have 17 numbers each, but layer 'conv2' .* 16 channels",
        ),
        ('direction(conv2,"f.safetensors")', saved({"vectors": NAN}), "NaN"),
        ('direction(conv9,"f.safetensors")', saved({"vectors": NAN[:1]}), "no layer 'conv9'"),
        (
            'direction(conv2,"f.pt")',
            lambda: torch.save({"vectors": nn.Linear(3, 3)}, "f.pt"),
            "more than tensors",
        ),
        ('sae(conv2,"f.safetensors")', saved(SAE, k="13"), "k = 13; expected .* 1 to 12"),
        ('sae(conv2,"f.safetensors")', saved(SAE, activation="topk"), "has no k"),
        ('sae(conv2,"f.safetensors")', saved(SAE, architecture="gated"), "said to be gated"),
        (
            'sae(conv2,"f.safetensors")',
            saved(SAE, normalize_activations="layer_norm"),
            "scales activations",
        ),
        (
            'sae(conv2,"f.safetensors")',
            saved(SAE | {"b_enc": torch.ones(5)}),
            r"b_enc of f.safetensors has the shape \[5\]; expected \[12\]",
        ),
    ],
)
def test_what_is_no_dictionary(layer, save, message):
    save()
    with pytest.raises(InputError, match=message):
        with_dictionaries(model_from_module(tiny.subject(), input_size=SIZE), [layer], SIZE)
