import pytest
import torch
from torch import nn

from polylight.embedding.layer_input import LayerInput, nearest_images
from polylight.embedding.reference import Reference
from polylight.networks import Model, list_layers, load_model
from polylight.reference import input_statistics
from tests.tiny_runs import SIZE, model, reference, run

CPU = torch.device("cpu")


def images(count=5, side=32):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, 3, side, side, generator=generator)


def plain(net, layer, seen):
    """Pooled float64 output of a child of a sequential network, run child by child."""
    x = seen.double()
    with torch.no_grad():
        for name, child in net.double().named_children():
            x = child(x.clone())
            if name == layer:
                return x.flatten(2).mean(2) if x.ndim > 2 else x
    raise KeyError(layer)


class Tokens(nn.Module):
    """Patches as tokens; two linear layers of which the first runs twice."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, 8)
        self.norm = nn.LayerNorm(6)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.norm(self.patch(x).flatten(2).mT)
        tokens = self.twice(self.twice(tokens).relu())
        return self.head(tokens.mean(1))


def wrapped(net):
    one = load_model("tiny:subject")
    return Model(
        net=net.eval(),
        **{
            k: getattr(one, k)
            for k in ("name", "source", "weights_hash", "mean", "std", "input_size")
        },
    )


def test_a_layer_reads_where_channels_are_first_mixed_on_the_way_to_it():
    layer_input = LayerInput(load_model("tiny:subject"), SIZE)
    # What the first convolution reads is the image.
    assert {layer: layer_input.source(layer) for layer in ("conv1", "act1", "conv2", "act2")} == {
        "conv1": None,
        "act1": None,
        "conv2": "conv2",
        "act2": "conv2",
    }
    assert [layer_input.source(name) for name in ("conv3", "act3", "pool", "fc")] == [
        "conv3",
        "conv3",
        "conv3",
        "fc",
    ]


def test_norms_rectifiers_and_depthwise_convolutions_look_further_down():
    layer_input = LayerInput(load_model("efficientnet_lite0"), 128)
    expected = {
        "conv_stem": None,
        "bn1": None,
        "blocks.0.0.conv_dw": None,
        "blocks.0": "blocks.0.0.conv_pw",
        "blocks.4.0.conv_pw": "blocks.4.0.conv_pw",
        "blocks.4.0.bn1.act": "blocks.4.0.conv_pw",
        "blocks.4.0.conv_dw": "blocks.4.0.conv_pw",
        "blocks.4.0.bn2": "blocks.4.0.conv_pw",
        "blocks.4.0.conv_pwl": "blocks.4.0.conv_pwl",
        "blocks.4": "blocks.4.0.conv_pw",
        "blocks": "blocks.0.0.conv_pw",
        "global_pool": "conv_head",
        "classifier": "classifier",
    }
    assert {layer: layer_input.source(layer) for layer in expected} == expected
    assert {x.name for x in list_layers(load_model("efficientnet_lite0"), 128)} <= set(
        layer_input.position
    )


def test_what_is_below_is_the_mean_input_in_deviations_of_the_reference():
    subject = load_model("tiny:subject")
    layer_input = LayerInput(subject, SIZE)
    mean, deviation = torch.randn(16), torch.rand(16) + 0.5
    frame = Reference("key", torch.zeros(3), {}, {}, {"conv3": mean}, {"conv3": deviation})
    seen = images()
    found = layer_input(seen, "act3", frame)
    entered = plain(load_model("tiny:subject").net, "act2", subject.preprocess(seen))
    expected = (entered - mean) / deviation
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert layer_input(seen, "act1", frame).shape == (5, 0)
    # The in-place rectifier behind it has written into nothing that is read.
    assert (layer_input.pooled(seen, ["fc"])["fc"] >= 0).all()


def test_tokens_are_pooled_and_the_last_run_counts():
    torch.manual_seed(0)
    net = Tokens().eval()
    layer_input = LayerInput(wrapped(net), 32)
    assert layer_input.source("norm") is None
    assert layer_input.source("twice") == "twice"
    found = layer_input.pooled(images(), ["head", "twice"])
    with torch.no_grad():
        seen = wrapped(net).preprocess(images())
        tokens = net.twice(net.norm(net.patch(seen).flatten(2).mT)).relu()
    torch.testing.assert_close(found["twice"], tokens.mean(1))
    torch.testing.assert_close(found["head"], net.twice(tokens).mean(1))


def test_the_forward_ends_where_the_last_module_is_read(monkeypatch):
    layer_input = LayerInput(load_model("tiny:subject"), SIZE)

    def fail(*_):
        raise AssertionError("ran on")

    monkeypatch.setattr(layer_input.net.conv3, "forward", fail)
    assert layer_input.pooled(images(), ["conv2", "conv3"])["conv3"].shape == (5, 16)
    with pytest.raises(AssertionError, match="ran on"):
        layer_input.pooled(images(), ["fc"])


def test_channels_that_are_not_finite_count_for_nothing():
    layer_input = LayerInput(load_model("tiny:subject"), SIZE)
    frame = Reference(
        "key", torch.zeros(3), {}, {}, {"conv2": torch.zeros(8)}, {"conv2": torch.ones(8)}
    )
    with torch.no_grad():
        layer_input.net.conv1.weight[2] = torch.nan
    found = layer_input(images(), "conv2", frame)
    assert (found[:, 2] == 0).all()
    assert found[:, [0, 1, 3, 4, 5, 6, 7]].isfinite().all()


def test_a_channel_counts_by_the_reference_images_of_neurons_about_as_deep():
    subject = load_model("tiny:subject")
    names = [layer.name for layer in list_layers(subject, SIZE)]
    seen = images(40)
    layers = [names[i % 2] for i in range(24)] + ["fc"] * 16
    means, deviations = input_statistics(subject, seen, layers, SIZE, CPU)
    assert list(means) == list(deviations) == ["conv2", "conv3", "fc"]
    entered = plain(load_model("tiny:subject").net, "act1", subject.preprocess(seen))
    # Of equally near ones the first: those of act1 come right before conv2, then those of conv1.
    near = [i for i in range(24) if layers[i] == "act1"] + [0, 2, 4, 6]
    mean, std = entered[near].mean(0), entered[near].std(0)
    torch.testing.assert_close(means["conv2"], mean.float(), rtol=1e-4, atol=1e-5)
    std = std.clamp_min(0.01 * std.max())
    torch.testing.assert_close(deviations["conv2"], std.float(), rtol=1e-3, atol=1e-5)
    nearest = nearest_images(LayerInput(subject, SIZE), layers, 16)
    assert nearest["conv2"].tolist() == sorted(near)
    assert nearest["fc"].tolist() == list(range(24, 40))
    assert all(len(v) == 40 for v in nearest_images(LayerInput(subject, SIZE), layers, 99).values())


def test_finished_neurons_bring_what_the_layer_reads_that_is_deepest():
    expressions = ["conv1:3", "act3:0", "max(fc:1, act2:2)", "max(act2:2, fc:1)"]
    found = run(expressions)
    layer_input = LayerInput(model("tiny:subject"), SIZE)
    for name, layer, width in (
        ("conv1:3", "conv1", 0),
        ("act3:0", "act3", 16),
        ("max(fc:1,act2:2)", "fc", 24),
        ("max(act2:2,fc:1)", "fc", 24),
    ):
        neuron = found[name]
        assert neuron.layer_input.shape == (len(neuron.images), width)
        expected = layer_input(neuron.images / 255.0, layer, reference())
        torch.testing.assert_close(neuron.layer_input, expected, rtol=1e-4, atol=1e-4)
