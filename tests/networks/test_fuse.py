"""Inverted residual blocks of real networks as one operation, beside the convolutions they were."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polylight.kernels import has_fma
from polylight.networks import load_model
from polylight.networks.fuse import FusedBlocks
from polylight.networks.subject import Subject

SIZE = 64

pytestmark = pytest.mark.skipif(not has_fma(), reason="the processor has no fused sums")


@pytest.fixture(scope="module")
def lite0():
    return load_model("efficientnet_lite0")


def images(batch=2, seed=1):
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def chains(subject):
    """How many blocks run as one, in the order of the network."""
    return [len(m.chain.plans) for m in subject.net.modules() if isinstance(m, FusedBlocks)]


def slope_of(subject, layer, x):
    x = x.clone().requires_grad_()
    post = subject(x)[layer].post
    seed = torch.randn(post.shape, generator=torch.Generator().manual_seed(5))
    return post.detach(), torch.autograd.grad(post, x, seed)[0]


def random_network(name):
    torch.manual_seed(0)
    model = load_model(name, "random")
    for module in model.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize(
    ("name", "layers", "expected"),
    [
        ("efficientnet_lite0", ["blocks.4"], [11, 5]),
        ("efficientnet_lite0", ["blocks.4", "blocks.1", "blocks.2.0"], [3, 1, 7, 5]),
        # What is read inside a block does not keep the others from running as one.
        ("efficientnet_lite0", ["blocks.2.1.bn2", "classifier"], [4, 11]),
        ("mobilenet_v2", ["features.18"], [17]),
        ("mnasnet0_5", ["layers.13"], [16]),
        # Other rectifiers, and squeeze and excitation, are not ours; sums are written in place.
        ("mobilenet_v3_large", ["features.12"], [1, 1, 1]),
        ("resnet18", ["layer4"], []),
    ],
)
def test_blocks_become_one_up_to_what_is_read(name, layers, expected):
    model = load_model(name) if "lite" in name else random_network(name)
    assert chains(Subject(model, layers, SIZE)) == expected
    assert chains(Subject(model, layers, SIZE, kernels="torch")) == []


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("mobilenet_v2", "features.18"),
        ("mnasnet0_5", "layers.13"),
        ("mobilenet_v3_large", "features.12"),
    ],
)
def test_activations_and_gradients_are_those_of_convolutions(name, layer):
    model = random_network(name)
    x = images()
    fused, plain = (Subject(model, [layer], SIZE, kernels=k) for k in ("auto", "torch"))
    post, slope = slope_of(fused, 0, x)
    expected, expected_slope = slope_of(plain, 0, x)
    assert (post - expected).abs().max() <= 1e-5 * expected.abs().max()
    # Rounding may move single values across the kink of a rectifier.
    assert (slope - expected_slope).norm() <= 1e-2 * expected_slope.norm()


@pytest.mark.parametrize("inner", ["blocks.1.0.conv_pw", "blocks.1.0.bn2", "blocks.2.1.conv_dw"])
def test_no_bit_depends_on_what_else_is_read(lite0, inner):
    x = images()
    alone, both = Subject(lite0, ["blocks.3"], SIZE), Subject(lite0, [inner, "blocks.3"], SIZE)
    for ours, expected in zip(slope_of(both, 1, x), slope_of(alone, 0, x), strict=True):
        assert torch.equal(ours, expected)
    plain = Subject(lite0, [inner], SIZE, kernels="torch")
    ours, expected = slope_of(both, 0, x), slope_of(plain, 0, x)
    assert (ours[0] - expected[0]).abs().max() <= 1e-5 * expected[0].abs().max()
    assert (ours[1] - expected[1]).norm() <= 1e-2 * expected[1].norm()


def test_an_image_is_the_same_in_any_batch(lite0):
    subject = Subject(lite0, ["blocks.2"], SIZE)
    x = images(8)
    whole = slope_of(subject, 0, x)[0]
    turned = slope_of(subject, 0, x.flip(0))[0]
    assert torch.equal(whole, turned.flip(0))


def test_other_types_run_as_convolutions(lite0):
    subject = Subject(lite0, ["blocks.1.0.bn1", "blocks.3"], SIZE)
    half = subject.cast(torch.bfloat16)
    x = images()
    for ours, expected in zip(half(x).values(), subject(x).values(), strict=True):
        assert ours.post.dtype == torch.bfloat16
        # Eight bits.
        assert (ours.post - expected.post).norm() <= 0.05 * expected.post.norm()
    assert torch.equal(copy.deepcopy(subject)(x)[1].post, subject(x)[1].post)


def test_other_sizes_run_as_convolutions(lite0):
    subject = Subject(lite0, ["blocks.1.0.bn1", "blocks.3"], SIZE)
    larger = Subject(lite0, ["blocks.1.0.bn1", "blocks.3"], 2 * SIZE)
    x = F.interpolate(images(), scale_factor=2.0)
    normal = larger._normalise(x)
    for ours, expected in zip(
        subject.activations(normal, [0, 1]).values(), larger(x).values(), strict=True
    ):
        assert (ours.post - expected.post).abs().max() <= 1e-5 * expected.post.abs().max()


def test_processors_without_fused_sums_run_convolutions(lite0, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert chains(Subject(lite0, ["blocks.3"], SIZE)) == []


class Block(nn.Module):
    """An inverted residual block, with something about it that keeps it from being one."""

    def __init__(self, change=""):
        super().__init__()
        self.change = change
        self.expand = nn.Conv2d(8, 16, 1, stride=1, groups=2 if change == "groups" else 1)
        self.first = nn.SiLU() if change == "smooth" else nn.ReLU6()
        mode = "reflect" if change == "mode" else "zeros"
        dilation = 2 if change == "dilation" else 1
        self.taps = nn.Conv2d(
            16, 16, 3, padding=dilation, groups=16, padding_mode=mode, dilation=dilation
        )
        self.second = nn.ReLU()
        self.project = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        wide = self.first(self.expand(x))
        inner = self.taps(wide)
        if self.change == "functional":
            inner = F.relu(inner)
        elif self.change != "linear":
            inner = self.second(inner)
        out = self.project(inner)
        if self.change == "in place":
            out += x
            return out
        if self.change == "used twice":
            return out + wide.mean((1, 2, 3), keepdim=True)
        return out + (2.0 if self.change == "constant" else x)


def network(change):
    def make():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2), Block(change), nn.Conv2d(8, 8, 1))

    return make


CHANGES = ["smooth", "groups", "mode", "dilation", "functional", "linear", "in place"]
CHANGES += ["used twice", "constant"]
for _change in ["", *CHANGES]:
    globals()[f"network_{_change.replace(' ', '_')}"] = network(_change)


@pytest.mark.parametrize("change", ["", *CHANGES])
def test_only_what_is_a_block_runs_as_one(change):
    model = load_model(f"{__name__}:network_{change.replace(' ', '_')}")
    subject = Subject(model, ["2"], SIZE)
    assert chains(subject) == ([] if change else [1])
    x = images()
    expected = model.net(model.preprocess(x))
    assert (subject(x)[0].post - expected).abs().max() <= 1e-5 * expected.abs().max()
