import copy
import logging
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polylight.errors import InputError
from polylight.networks import load_model
from polylight.networks.layout import Layout
from polylight.networks.rectify import InPlaceRectifier
from polylight.networks.subject import Subject

SIZE = 64


class HandMade(nn.Module):
    """Everything that makes reading a layer hard, in a few channels."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 1)
        self.bn3 = nn.BatchNorm2d(8)
        self.rectified = Rectified()
        self.clamped = Clamped()
        self.split = Split()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 6)
        self.last = Raising()

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        skip = x
        x = self.bn2(self.conv2(x))
        x += skip
        x = self.relu(x)
        twice = self.conv3(x)
        x = self.bn3(twice) + 0.5 * twice
        x = self.rectified(x)
        x = self.clamped(x - 0.3)
        self.split(x)
        x = self.fc(self.pool(x).flatten(1))
        return self.last(x)


class Rectified(nn.Module):
    def forward(self, x):
        return F.relu(x - 0.2, inplace=True)


class Clamped(nn.Module):
    def forward(self, x):
        return x.clamp_min(0)


class Split(nn.Module):
    def forward(self, x):
        return x, x


class RanPastTheCut(Exception):  # noqa: N818
    pass


class Raising(nn.Module):
    def forward(self, x):
        raise RanPastTheCut


class Drifting(nn.Module):
    """Returns what no folding can keep: the convolution's own weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum()


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Drifting()
        self.split = Split()
        self.spare = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.split(self.inner(x))[0]


def randomise_norms(net, seed=0):
    """Give batch norms the statistics of a trained network: random nets have all 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data = torch.rand(tensor.shape, generator=generator) * (high - low) + low
    return net


def hand_made():
    return randomise_norms(HandMade())


def outer():
    return randomise_norms(Outer())


@pytest.fixture(scope="module")
def models():
    loaded = {
        "lite0": load_model("efficientnet_lite0"),
        "resnet18": load_model("resnet18", "random"),
        "timm_resnet18": load_model("timm/resnet18", "random"),
        "googlenet": load_model("googlenet", "random"),
        "densenet121": load_model("densenet121", "random"),
        "hand_made": load_model(f"{__name__}:hand_made"),
    }
    for name, model in loaded.items():
        if name not in ("lite0", "hand_made"):
            randomise_norms(model.net)
    return loaded


def images(batch=2, size=SIZE, seed=1):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def reference(model, layers, x):
    """What the last call of each layer returns in a plain forward of the original network."""
    net, found = copy.deepcopy(model.net), {}
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    for name in layers:
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: found.__setitem__(name, output.clone())
        )
    with suppress(RanPastTheCut):
        net(model.preprocess(x))
    return [found[name] for name in layers]


LAYERS = {
    "lite0": ["conv_stem", "blocks.0.0.bn1", "blocks.1.0.conv_dw", "blocks.4", "classifier"],
    "resnet18": ["layer4", "layer4.1", "layer4.1.conv2", "layer1.0.relu", "layer2.0.bn2", "fc"],
    "timm_resnet18": ["bn1", "layer3.0.act1", "layer4"],
    "googlenet": ["conv1", "inception3a.branch1", "inception3a.branch1.conv", "inception4b", "fc"],
    "densenet121": ["features.norm0", "features.transition1.relu", "features.norm5", "features"],
    "hand_made": ["conv1", "bn2", "relu", "bn3", "rectified", "clamped", "fc"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_activations_equal_the_originals(models, name):
    model, layers = models[name], LAYERS[name]
    x = images()
    subject = Subject(model, layers, SIZE)
    assert subject.num_folded > 0
    for layer, found, expected in zip(
        layers, subject(x).values(), reference(model, layers, x), strict=True
    ):
        error = (found.post - expected).abs().max() / expected.abs().max()
        assert error <= 1e-4, layer


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_equal_the_originals(models, name):
    model, layer = models[name], LAYERS[name][-2]
    x, y = images().requires_grad_(), images().requires_grad_()
    shape = reference(model, [layer], y)[0].shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    (Subject(model, [layer], SIZE)(x)[0].post * weights).sum().backward()
    (reference(model, [layer], y)[0] * weights).sum().backward()
    # Rounding may move single values across the kink of a rectifier.
    assert (x.grad - y.grad).norm() <= 1e-2 * y.grad.norm()


@pytest.mark.parametrize("size", [63, 64, 65, 66])
@pytest.mark.parametrize("layer", ["blocks.1.0.conv_dw", "blocks.5"])
def test_fixed_padding_is_tensorflows_at_every_size(models, size, layer):
    x = images(1, size)
    found = Subject(models["lite0"], [layer], size)(x)[0]
    (expected,) = reference(models["lite0"], [layer], x)
    assert found.post.shape == expected.shape
    assert (found.post - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_shapes_of_layers_are_known(models):
    subject = Subject(models["lite0"], ["classifier", "blocks.1"], 96)
    assert subject.channels == [1000, 24]
    assert [layout.size for layout in subject.layouts] == [(), (24, 24)]
    assert [layout.channel_axis for layout in subject.layouts] == [1, 1]
    transformer = Subject(load_model("timm/vit_tiny_patch16_224", "random"), ["blocks.1"], 224)
    assert transformer.layouts == [Layout(2, 1, (14, 14), 192)]
    assert transformer(torch.rand(1, 3, 224, 224))[0].post.shape == (1, 192, 197)


def test_only_the_layers_asked_for_are_read(models):
    subject = Subject(models["resnet18"], ["layer2", "conv1", "layer1"], SIZE)
    assert sorted(range(3), key=subject.depths.__getitem__) == [1, 2, 0]
    found = subject(images(), [2, 1])
    assert list(found) == [1, 2]
    everything = subject(images())
    assert all(torch.equal(found[i].post, everything[i].post) for i in found)
    calls = []
    subject.net.layer2.register_forward_pre_hook(lambda *_: calls.append(1))
    subject(images(), [2])
    assert not calls


@pytest.mark.parametrize(
    ("name", "layer", "rectify"),
    [
        ("lite0", "bn1", nn.ReLU6()),
        ("lite0", "blocks.1.0.bn1.act", nn.ReLU6()),
        ("resnet18", "relu", nn.ReLU()),
        ("resnet18", "layer4", nn.ReLU()),
        ("resnet18", "layer4.1", nn.ReLU()),
        ("timm_resnet18", "layer4.0.act1", nn.ReLU()),
        ("googlenet", "inception3a.branch2", nn.ReLU()),
        ("hand_made", "relu", nn.ReLU()),
        ("hand_made", "rectified", nn.ReLU()),
        ("hand_made", "clamped", nn.ReLU()),
    ],
)
def test_pre_is_what_the_rectifier_got(models, name, layer, rectify):
    found = Subject(models[name], [layer], SIZE)(images())[0]
    assert torch.equal(rectify(found.pre), found.post)
    assert (found.pre < 0).any()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lite0", "conv_stem"),
        ("lite0", "blocks.4"),
        ("lite0", "classifier"),
        ("resnet18", "bn1"),
        ("resnet18", "layer4.1.bn2"),
        ("resnet18", "maxpool"),
        ("googlenet", "inception3a"),
        ("densenet121", "features"),
        ("hand_made", "bn2"),
    ],
)
def test_pre_is_post_without_a_rectifier(models, name, layer):
    found = Subject(models[name], [layer], SIZE)(images())[0]
    assert found.pre is found.post


@pytest.mark.parametrize("layer", ["rectified", "relu"])
def test_pre_has_a_gradient_where_the_rectifier_is_dead(models, layer):
    x = images().requires_grad_()
    found = Subject(models["hand_made"], [layer], SIZE)(x)[0]
    dead = found.pre < 0
    (through_post,) = torch.autograd.grad(found.post[dead].sum(), x, retain_graph=True)
    (through_pre,) = torch.autograd.grad(found.pre[dead].sum(), x)
    assert not through_post.any()
    assert through_pre.any()


@pytest.mark.parametrize(
    ("name", "conv", "layer"),
    [("resnet18", "layer4.1.conv2", "layer4"), ("lite0", "blocks.1.0.conv_pw", "blocks.2")],
)
def test_a_layer_is_the_same_whichever_convolution_is_asked_for_too(models, name, conv, layer):
    x = images()
    both = Subject(models[name], [conv, layer], SIZE)
    alone = Subject(models[name], [layer], SIZE)
    assert both.num_folded == alone.num_folded
    assert torch.equal(both(x)[1].post, alone(x)[0].post)
    (expected,) = reference(models[name], [conv], x)
    assert (both(x)[0].post - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_norm_that_cannot_be_undone_is_left_alone_where_its_convolution_is_asked_for():
    model = load_model("resnet18", "random")
    with torch.no_grad():
        model.net.layer1[0].bn1.weight[3] = 0.0
    assert Subject(model, ["layer1.0.conv1"], SIZE).num_folded == 19
    assert Subject(model, ["layer1"], SIZE).num_folded == 20


def test_only_norms_that_are_the_single_use_of_a_conv_are_folded(models):
    assert Subject(models["hand_made"], ["fc"], SIZE).num_folded == 2


def test_forward_stops_at_the_deepest_layer(models):
    subject = Subject(models["hand_made"], ["fc", "conv1"], SIZE)
    fc, conv1 = subject(images()).values()
    assert fc.post.shape == (2, 6)
    assert conv1.post.shape == (2, 8, 62, 62)


def test_order_and_repeats_of_layers_are_kept(models):
    subject = Subject(models["resnet18"], ["layer2", "conv1", "layer2"], SIZE)
    assert subject.channels == [128, 64, 128]
    found = subject(images())
    assert torch.equal(found[0].post, found[2].post)
    assert found[1].post.shape[1] == 64


def test_subject_is_frozen_and_the_model_unchanged():
    model = load_model("resnet18", "random")
    modules = [
        (name, type(module), vars(module).get("inplace"))
        for name, module in model.net.named_modules()
    ]
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    subject = Subject(model, ["layer2"], SIZE)
    x = images().requires_grad_()
    subject.train()
    subject(x)[0].post.sum().backward()
    assert x.grad is not None
    assert not any(p.requires_grad or p.grad is not None for p in subject.parameters())
    assert not any(module.training for module in subject.modules())
    after = model.net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert modules == [
        (name, type(module), vars(module).get("inplace"))
        for name, module in model.net.named_modules()
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.modules())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("lite0", "blocks.4"),
        ("lite0", "classifier"),
        ("resnet18", "layer4"),
        ("googlenet", "conv3"),
    ],
)
@pytest.mark.parametrize("batch", [4, 8])
def test_an_image_does_not_depend_on_its_batch_or_place(models, name, layer, batch):
    subject = Subject(models[name], [layer], SIZE)
    ours, others = images(1, seed=2), images(batch, seed=3) * 0.5
    results = []
    for slot in (0, 1, batch - 1):
        x = others.flip(0).roll(slot, 0).clone()
        x[slot] = ours[0]
        x.requires_grad_()
        post = subject(x)[0].post
        (post[:, 3].reshape(batch, -1).mean(1) ** 2).sum().backward()
        results.append((post[slot].detach(), x.grad[slot]))
    for post, grad in results[1:]:
        assert torch.equal(post, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_layout_stays_channels_last_in_forward_and_backward(models):
    subject = Subject(models["lite0"], ["blocks.2"], SIZE, kernels="torch")
    layouts = []

    # A hook on the tensors: one on the modules forbids that they write in place.
    def record(module, inputs, output):
        inputs[0].register_hook(
            lambda g: layouts.append(g.is_contiguous(memory_format=torch.channels_last))
        )

    for module in subject.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels != 3:
            module.register_forward_hook(record)
    x = images(4).requires_grad_()
    post = subject(x)[0].post
    assert post.is_contiguous(memory_format=torch.channels_last)
    seed = torch.zeros_like(post)
    seed[:, 3] = 1.0
    post.backward(seed)
    assert len(layouts) > 10
    assert all(layouts)


@pytest.mark.parametrize(
    ("name", "layers", "replaced", "owning"),
    [
        ("lite0", ["blocks.2"], 33, 32),
        ("lite0", ["blocks.1.0.conv_pw", "blocks.1.0.bn2", "blocks.2"], 31, 30),
        # Of a block the second rectifier is used twice and follows a sum.
        ("timm_resnet18", ["layer2"], 16, 8),
        ("timm_resnet18", ["layer1.0.act1", "layer1.0.bn2", "layer2"], 14, 7),
        # One module for both.
        ("resnet18", ["layer2"], 8, 0),
        ("hand_made", ["fc"], 1, 0),
    ],
)
def test_rectifiers_in_place_change_no_bit(models, monkeypatch, name, layers, replaced, owning):
    subject = Subject(models[name], layers, SIZE)
    found = [m for m in subject.modules() if isinstance(m, InPlaceRectifier)]
    assert len([m for m in found if m.owns_gradient]) == owning
    assert len(found) == replaced
    monkeypatch.setattr("polylight.networks.subject.rectify_in_place", lambda *given: None)
    plain = Subject(models[name], layers, SIZE)
    assert not any(isinstance(m, InPlaceRectifier) for m in plain.modules())
    slopes = []
    for net in (subject, plain):
        x = images(4).requires_grad_()
        activations = net(x)
        goal = sum((a.post.square() + a.pre).mean() for a in activations.values())
        slopes.append((activations, torch.autograd.grad(goal, x)[0]))
    for ours, expected in zip(slopes[0][0].values(), slopes[1][0].values(), strict=True):
        assert torch.equal(ours.post, expected.post)
        assert torch.equal(ours.pre, expected.pre)
    assert torch.equal(slopes[0][1], slopes[1][1])
    assert slopes[0][1].abs().max() > 0


def test_unfaithful_folding_is_given_up_and_logged(caplog):
    model = load_model(f"{__name__}:outer")
    with caplog.at_level(logging.WARNING):
        subject = Subject(model, ["inner"], SIZE)
    assert subject.num_folded == 0
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "without folded batch norms: with them, inner did not return the same" in caplog.text
    found = subject(images())[0]
    torch.testing.assert_close(found.post, reference(model, ["inner"], images())[0])


def test_subject_can_be_copied(models):
    subject = Subject(models["googlenet"], ["conv1"], SIZE)
    twin = copy.deepcopy(subject)
    assert torch.equal(twin(images())[0].pre, subject(images())[0].pre)


@pytest.mark.parametrize(
    ("name", "layers", "size", "message"),
    [
        ("resnet18", ["layer5"], SIZE, r"no layer 'layer5'; nearest: layer\d.*polylight layers"),
        ("resnet18", [], SIZE, "at least one layer. Run `polylight layers resnet18`"),
        ("googlenet", ["aux1"], SIZE, "no layer 'aux1'"),
        ("resnet18", ["layer1"], 0, "at least 1 pixel"),
    ],
)
def test_layers_that_cannot_be_read(models, name, layers, size, message):
    with pytest.raises(InputError, match=message):
        Subject(models[name], layers, size)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("spare", "layer 'spare' of .* does not run"), ("split", "returns 2 tensors; choose one of")],
)
def test_layers_without_an_activation_are_refused(layer, message):
    with pytest.raises(InputError, match=message):
        Subject(load_model(f"{__name__}:outer"), [layer], SIZE)


def test_errors_of_the_network_itself_are_named(models):
    with pytest.raises(InputError, match=r"does not run on an image .*RanPastTheCut"):
        Subject(models["hand_made"], ["last"], SIZE)


def test_image_too_small_for_the_layer():
    model = load_model("squeezenet1_1", "random")
    message = r"images of 8 px are too small for layer 'features.5' of squeezenet1_1; .* is 9 px"
    with pytest.raises(InputError, match=message):
        Subject(model, ["features.5"], 8)
    assert Subject(model, ["features.5"], 9).layouts[0].size == (1, 1)
    # The rest of the network would not run at this size.
    assert Subject(model, ["features.2"], 9).layouts[0].size == (2, 2)


@pytest.mark.parametrize("shape", [(1, 3, SIZE, SIZE + 1), (1, 1, SIZE, SIZE), (3, SIZE, SIZE)])
def test_images_of_another_size_are_refused(models, shape):
    subject = Subject(models["resnet18"], ["layer1"], SIZE)
    with pytest.raises(InputError, match=r"expected images \[B, 3, 64, 64\]; got"):
        subject(torch.rand(shape))


@pytest.mark.parametrize(("name", "layer"), [("lite0", "blocks.2"), ("timm_resnet18", "layer2")])
def test_bfloat16_sees_nearly_the_same(models, name, layer):
    subject = Subject(models[name], [layer], SIZE)
    coarse = subject.cast(torch.bfloat16)
    assert subject.net.state_dict().keys() == coarse.net.state_dict().keys()
    assert next(subject.net.parameters()).dtype == torch.float32
    still = torch.eye(2, 3).expand(4, 2, 3)
    found, expected = (s.look(images(4), still)[0].post for s in (coarse, subject))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(expected, subject(images(4))[0].post, rtol=0, atol=1e-3)
    # Eight bits a rounding, some tens of them after each other.
    error = (found.float() - expected).norm() / expected.norm()
    assert error < 0.03


class Float32Only(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) @ torch.ones(62, 62)


def float32_only():
    return Float32Only()


def test_a_network_that_needs_float32_is_named():
    subject = Subject(load_model(f"{__name__}:float32_only"), ["conv"], SIZE)
    assert subject.cast(torch.bfloat16).dtype == torch.bfloat16  # cut off before it matters


class Float32Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Float32Only()

    def forward(self, x):
        return self.inner(x)


def float32_layer():
    return Float32Layer()


def test_a_layer_that_needs_float32_is_refused():
    subject = Subject(load_model(f"{__name__}:float32_layer"), ["inner"], SIZE)
    with pytest.raises(InputError, match=r"does not run in bfloat16 .*--model.precision float32"):
        subject.cast(torch.bfloat16)
