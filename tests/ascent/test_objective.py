import pytest
import torch
from torch.nn import functional as F

from polylight.ascent.objective import Scale, make_targets, read
from polylight.networks.subject import LayerActivation
from polylight.neurons import Component, LayerShape, parse_neurons

LAYERS = ["maps", "plain", "tokens", "fc"]
SHAPES = {
    "maps": LayerShape(6, (5, 4), 0),
    "plain": LayerShape(4, (5, 4), 1),
    "tokens": LayerShape(7, (9,), 2),
    "fc": LayerShape(3, (), 3),
}
SCALES = {
    Component("maps", 1): Scale(0.3, 2.0),
    Component("maps", 4, -1): Scale(-0.5, 0.25),
    Component("plain", 2, 1, "center"): Scale(0.1, 1.5),
    Component("fc", 0): Scale(0.0, 3.0),
    Component("fc", 2, -1): Scale(1.0, 0.5),
    Component("tokens", 3): Scale(-0.2, 0.7),
}
COMPOSITES = [
    "max(maps:1,plain:2@center)",
    "min(maps:1,-maps:4,fc:0)",
    "mean(tokens:3,fc:0,maps:1,-fc:2)",
    "max(-maps:4,-fc:2)",
    "mean(maps:1,maps:1)",
]
PARTS = [
    "maps:1",
    "maps:5@2x3",
    "maps:0@center",
    "-maps:4",
    "-maps:4@0x1",
    "plain:2",
    "plain:3@4x0",
    "-plain:0",
    "tokens:3",
    "tokens:6@center",
    "fc:0",
    "-fc:2",
]


class Net(torch.nn.Module):
    """Rectified maps, plain maps, tokens and logits in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 6, 3, padding=1).double()
        self.second = torch.nn.Conv2d(6, 4, 3, padding=1).double()
        self.words = torch.nn.Linear(4, 7).double()
        self.fc = torch.nn.Linear(7, 3).double()

    def forward(self, x):
        pre = self.first(x)
        maps = F.relu(pre)
        plain = self.second(maps)
        tokens = self.words(plain.flatten(2)[:, :, :9].mT).mT  # [B, 7, 9]
        fc = self.fc(tokens.mean(2))
        return {
            0: LayerActivation(maps, pre),
            1: LayerActivation(plain, plain),
            2: LayerActivation(tokens, tokens),
            3: LayerActivation(fc, fc),
        }


@pytest.fixture(scope="module")
def net():
    return Net()


def images(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 5, 4, generator=generator, dtype=torch.float64)


def targets(expressions, num_components=4):
    neurons = [neuron for text in expressions for neuron in parse_neurons([text], SHAPES)]
    return make_targets(neurons, SHAPES, SCALES, num_components)


def plain_component(component, activations, row):
    """The value of a component, written as anybody would."""
    found = activations[LAYERS.index(component.layer)]
    silent = False

    def place(tensor):
        tensor = tensor[row, component.channel]
        if component.position is None or not tensor.ndim:
            return tensor.mean()
        if component.position == "center":
            return tensor[tuple(s // 2 for s in tensor.shape)]
        return tensor[component.position]

    seen = found.post[row, component.channel]
    silent = bool((seen if component.position is None else place(found.post)).le(0).all())
    reads_pre = found.pre is not found.post and (component.sign < 0 or silent)
    return component.sign * place(found.pre if reads_pre else found.post)


def plain_value(neuron, activations, row):
    if not neuron.operation:
        return plain_component(neuron.components[0], activations, row)
    values = torch.stack(
        [
            (plain_component(p, activations, row) - SCALES[p].offset) / SCALES[p].gain
            for p in neuron.components
        ]
    )
    return {"max": values.max, "min": values.min, "mean": values.mean}[neuron.operation]()


@pytest.mark.parametrize("expression", PARTS + COMPOSITES)
def test_value_and_gradient_equal_those_of_plain_indexing(net, expression):
    x = images(5).requires_grad_()
    readings = read(net(x), targets([expression] * 5), 7)
    (gradient,) = torch.autograd.grad(readings.value.sum(), x)

    (neuron,) = parse_neurons([expression], SHAPES)
    activations = net(x)
    expected = torch.stack([plain_value(neuron, activations, row) for row in range(5)])
    (expected_gradient,) = torch.autograd.grad(expected.sum(), x)
    # The weights of a mean, 1 / S, are float32.
    torch.testing.assert_close(readings.value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)


def test_a_batch_of_different_neurons_reads_each_as_if_alone(net):
    x = images(len(PARTS + COMPOSITES)).requires_grad_()
    together = read(net(x), targets(PARTS + COMPOSITES), 7)
    (gradient,) = torch.autograd.grad(together.value.sum(), x)
    for row, expression in enumerate(PARTS + COMPOSITES):
        alone = read(net(x), targets([expression] * len(x)), 7)
        (own,) = torch.autograd.grad(alone.value.sum(), x)
        torch.testing.assert_close(together.value[row], alone.value[row], rtol=0, atol=0)
        torch.testing.assert_close(gradient[row], own[row], rtol=0, atol=0)
        torch.testing.assert_close(together.features[row], alone.features[row], rtol=0, atol=0)


@pytest.mark.parametrize("expression", ["maps:1", "-maps:4", *COMPOSITES])
def test_an_image_does_not_move_the_others(net, expression):
    x = images(4).requires_grad_()
    value = read(net(x), targets([expression] * 4), 7).value
    (gradient,) = torch.autograd.grad(value[2], x)
    assert gradient[2].abs().max() > 0
    assert (gradient[[0, 1, 3]] == 0).all()


def test_features_are_the_pooled_activations_of_the_deepest_layer(net):
    readings = read(net(images(4)), targets(["maps:1", "tokens:3", "fc:0", COMPOSITES[1]]), 7)
    made = net(images(4))
    expected = torch.zeros(4, 7, dtype=torch.float64)
    expected[0, :6] = made[0].post[0].mean((1, 2))
    expected[1] = made[2].post[1].mean(1)
    expected[2, :3] = made[3].post[2]
    expected[3, :3] = made[3].post[3]
    torch.testing.assert_close(readings.features, expected.to(readings.features.dtype))


def rectified(pre):
    return {0: LayerActivation(F.relu(pre), pre)}


def maps(*levels):
    """Pre-activations [B, 6, 5, 4], channel 1 of each image at the level given, give or take."""
    torch.manual_seed(3)
    pre = torch.rand(len(levels), 6, 5, 4) + 0.5
    pre[:, 1] = torch.tensor(levels)[:, None, None] + 0.1 * torch.rand(len(levels), 5, 4)
    return pre.requires_grad_()


def test_a_rectified_channel_is_read_before_its_rectifier_until_it_wakes():
    pre = maps(-2.0, 1.0, -0.05)
    readings = read(rectified(pre), targets(["maps:1"] * 3), 6)
    assert readings.inactive.tolist() == [True, False, False]
    expected = [pre[0, 1].mean(), pre[1, 1].mean(), pre[2, 1].relu().mean()]
    torch.testing.assert_close(readings.value, torch.stack(expected))

    (gradient,) = torch.autograd.grad(readings.value.sum(), pre)
    torch.testing.assert_close(gradient[:2, 1], torch.full((2, 5, 4), 1 / 20))
    assert ((gradient[2, 1] > 0) == (pre[2, 1] > 0)).all()

    # One step along its gradient wakes it, and it is read after its rectifier.
    awake = read(rectified((pre + 60 * gradient).detach()), targets(["maps:1"] * 3), 6)
    assert awake.inactive.tolist() == [False, False, False]
    torch.testing.assert_close(awake.value[0], (pre[0, 1].detach() + 3).mean())


def test_at_a_position_only_that_position_counts_for_waking():
    pre = maps(-2.0, -2.0)
    with torch.no_grad():
        pre[1, 1, 2, 3] = 0.5
        pre[0, 1, 2, 2] = 0.5
    readings = read(rectified(pre), targets(["maps:1@2x3"] * 2), 6)
    assert readings.inactive.tolist() == [True, False]
    torch.testing.assert_close(readings.value, pre[:, 1, 2, 3])


def test_negated_parts_read_the_pre_activation_and_never_sleep():
    pre = maps(-2.0, 1.0)
    readings = read(rectified(pre), targets(["-maps:1"] * 2), 6)
    torch.testing.assert_close(readings.value, -pre[:, 1].mean((1, 2)))
    assert not readings.inactive.any()


@pytest.mark.parametrize(
    ("operation", "expected"), [("max", [True, False]), ("min", [True, True]), ("mean", [True, 0])]
)
def test_a_composite_sleeps_when_waking_its_sleeping_parts_is_all_that_is_left(operation, expected):
    pre = maps(-2.0, -2.0)
    with torch.no_grad():
        pre[0, 3] = -1.0
    scales = {Component("maps", 1): Scale(0.0, 1.0), Component("maps", 3): Scale(0.0, 1.0)}
    (neuron,) = parse_neurons([f"{operation}(maps:1,maps:3)"], SHAPES)
    readings = read(rectified(pre), make_targets([neuron] * 2, SHAPES, scales, 2), 6)
    assert readings.inactive.tolist() == expected


@pytest.mark.parametrize("num_components", [7, 8, 9, 16, 33])
def test_padding_parts_change_no_bit(net, num_components):
    net = Net().float()
    x = images(40).float().requires_grad_()
    wide = "mean(maps:1,-maps:4,plain:2@center,fc:0,-fc:2,tokens:3)"
    batch = [
        "maps:1",
        "max(maps:1,plain:2@center)",
        wide,
        "-fc:2",
        "min(fc:0,tokens:3)",
        *[wide] * 35,
    ]
    one = read(net(x), targets(batch, 6), 7)
    (one_gradient,) = torch.autograd.grad(one.value.sum(), x)
    other = read(net(x), targets(batch, num_components), 7)
    (other_gradient,) = torch.autograd.grad(other.value.sum(), x)
    assert torch.equal(one.value, other.value)
    assert torch.equal(one_gradient, other_gradient)
    assert torch.equal(one.features, other.features)


def test_the_gradient_arrives_in_any_memory_layout():
    pre = torch.randn(2, 6, 4, 5).mT  # rows and columns change places in memory
    found = pre.requires_grad_()
    value = read({0: LayerActivation(found, found)}, targets(["maps:1", "maps:2@3x1"]), 6).value
    (gradient,) = torch.autograd.grad(value.sum(), found)
    expected = torch.zeros(2, 6, 5, 4)
    expected[0, 1], expected[1, 2, 3, 1] = 1 / 20, 1
    torch.testing.assert_close(gradient, expected)


def test_gradients_keep_channels_last():
    pre = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    value = read({0: LayerActivation(pre, pre)}, targets(["maps:1", "maps:2"]), 6).value
    (gradient,) = torch.autograd.grad(value.sum(), pre)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
