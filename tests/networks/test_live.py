"""A network in memory: its copy computes the same, and the original never notices."""

import copy
import logging
import random

import numpy as np
import pytest
import tiny
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from polylight.errors import InputError
from polylight.networks import load_model
from polylight.networks.live import check_module, model_from_module

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


class Plain(nn.Module):
    """A network as people have it: batch norm, dropout, a buffer, and a number."""

    def __init__(self, slope=0.1):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.slope = slope
        self.register_buffer("shift", torch.ones(4, 1, 1), persistent=False)
        self.cache = []

    def features(self, x):
        return nn.functional.leaky_relu(self.norm(self.conv(x)) + self.shift, self.slope)

    def forward(self, x):
        return self.head(self.drop(self.features(x)).mean((2, 3)))


def seeded(make, *args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(*args)


def state(net):
    """All of a network that someone could notice a change of."""
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return {
        "modes": {n: m.training for n, m in net.named_modules()},
        "values": {n: t.detach().clone() for n, t in tensors},
        "identities": {n: (id(t), t.data_ptr(), t._version) for n, t in tensors},
        "kinds": {n: (t.dtype, t.device, t.requires_grad) for n, t in tensors},
        "gradients": {n: None if t.grad is None else t.grad.clone() for n, t in tensors},
        "hooks": {
            n: [list(hooks.items()) for k, hooks in vars(m).items() if k.endswith("_hooks")]
            for n, m in net.named_modules()
        },
        "random": [torch.get_rng_state(), np.random.get_state()[1], random.getstate()],  # noqa: NPY002
        "attributes": {n: list(vars(m)) for n, m in net.named_modules()},
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        other = after[key]
        if isinstance(value, dict):
            assert_same(value, other)
        elif isinstance(value, list) and any(isinstance(v, torch.Tensor) for v in value):
            assert torch.equal(value[0], other[0])
            assert np.array_equal(value[1], other[1])
            assert value[2] == other[2]
        else:
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_copy_is_float32_and_the_original_as_it_was(train, kind):
    net = seeded(Plain).to(kind).train(train)
    net.conv.weight.requires_grad_(False)
    net(IMAGES.to(kind)).sum().backward()
    before = state(net)
    model = model_from_module(net, mean=0.5, std=0.5, input_size=32)
    model.net(IMAGES)
    assert_same(before, state(net))
    assert not any(m.training for m in model.net.modules())
    assert {t.dtype for t in model.net.state_dict().values()} == {torch.float32, torch.int64}
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())
    exact = copy.deepcopy(net).float().eval()
    torch.testing.assert_close(model.net(IMAGES), exact(IMAGES), rtol=0, atol=0)
    assert (model.name, model.source) == ("Plain", "live")
    assert (model.mean, model.std, model.input_size) == ((0.5,) * 3, (0.5,) * 3, 32)
    shared = {p.data_ptr() for p in net.parameters()} & {
        p.data_ptr() for p in model.net.parameters()
    }
    assert not shared


def test_hooks_of_the_user_are_neither_run_nor_lost():
    net, seen = seeded(Plain), []
    net.conv.register_forward_hook(lambda module, args, out: seen.append(out))
    net.register_forward_pre_hook(lambda module, args: seen.append(args))
    net.head.register_forward_hook(lambda m, args, kwargs, out: out * 0, with_kwargs=True)
    net.norm.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs))
    net.conv.weight.register_hook(lambda gradient: gradient * 0)
    before = state(net)
    model = model_from_module(net)
    assert model.net(IMAGES).abs().sum() > 0
    assert seen == []
    assert_same(before, state(net))
    net(IMAGES)
    assert len(seen) == 2


def test_tensors_that_autograd_made_are_no_obstacle():
    net = seeded(Plain)
    net.cache.append({"out": (net.conv(IMAGES),)})
    net.last = net.conv(IMAGES)
    frozen = model_from_module(net).net
    assert torch.equal(frozen.last, net.last)
    assert not frozen.last.requires_grad
    assert not frozen.cache[0]["out"][0].requires_grad
    assert net.last.requires_grad


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "new weight_norm", "new spectral_norm", "prune"],
)
def test_what_works_out_a_weight_is_kept(wrap):
    net = seeded(Plain)
    net.conv = seeded(wrap, net.conv)
    net.eval()
    expected = net(IMAGES).detach()
    net.train()
    before = state(net)
    model = model_from_module(net)
    torch.testing.assert_close(model.net(IMAGES), expected, rtol=0, atol=0)
    # They work on the copy's own parameters.
    for parameter in model.net.conv.parameters():
        parameter.zero_()
    assert_same(before, state(net))


def test_compiled_and_wrapped_networks_are_their_originals():
    net = seeded(Plain).eval()
    expected, hashed = net(IMAGES), model_from_module(net).weights_hash
    inside = copy.deepcopy(net)
    inside.conv = torch.compile(inside.conv)
    in_place = copy.deepcopy(net)
    in_place.compile()
    for wrapped in (torch.compile(net), nn.DataParallel(net), inside, in_place):
        model = model_from_module(wrapped)
        assert dict(model.net.named_modules()).keys() == dict(net.named_modules()).keys()
        torch.testing.assert_close(model.net(IMAGES), expected, rtol=0, atol=0)
        assert (model.name, model.weights_hash) == ("Plain", hashed)
    assert isinstance(inside.conv, torch._dynamo.OptimizedModule)
    assert in_place._compiled_call_impl is not None


def test_shared_weights_stay_shared():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    frozen = model_from_module(net, input_size=2, mean=0, std=1).net
    assert frozen[1].weight is frozen[0].weight


def test_the_hash_knows_what_else_than_weights_decides():
    one, other = seeded(Plain), seeded(Plain, 0.2)
    hashed = [model_from_module(net).weights_hash for net in (one, one.train(), other)]
    assert hashed[0] == hashed[1] != hashed[2]
    swapped = copy.deepcopy(one)
    swapped.drop = nn.GELU()
    buffered = copy.deepcopy(one)
    buffered.shift += 1
    again = type("Plain", (Plain,), {"features": lambda self, x: self.conv(x)})
    again.__module__ = Plain.__module__
    changed = copy.deepcopy(one)
    changed.__class__ = again
    all_hashes = {model_from_module(n).weights_hash for n in (one, swapped, buffered, changed)}
    assert len(all_hashes) == 4
    # Hooks come and go.
    one.conv.register_full_backward_hook(lambda module, inputs, outputs: None)
    assert model_from_module(one).weights_hash == hashed[0]


def test_preprocessing_is_found(caplog):
    caplog.set_level(logging.INFO)
    assert model_from_module(tiny.subject()).mean == (0.5, 0.5, 0.5)
    assert model_from_module(nn.Sequential(tiny.subject())).input_size == 32
    assert "pretrained_cfg of 0" in caplog.text
    plain = model_from_module(Plain())
    assert (plain.mean[0], plain.input_size) == (0.485, 224)
    assert "mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225 (ImageNet's, as none" in caplog.text
    own = nn.Sequential(torchvision.transforms.Normalize([0.4] * 3, [0.2] * 3), Plain())
    found = model_from_module(own)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("resnet18", 224, 0.485), ("efficientnet_b1", 240, 0.485), ("inception_v3", 299, 0.485)],
)
def test_classifiers_of_torchvision_are_known_by_their_parameters(name, size, mean):
    options = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None, num_classes=3, **options)
    net.to_empty(device="cpu")
    for tensor in [*net.parameters(), *net.buffers()]:
        nn.init.zeros_(tensor)
    model = model_from_module(net)
    assert (model.input_size, model.mean[0]) == (size, mean)


def test_the_input_size_is_found_by_what_the_network_takes():
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 5))
    assert model_from_module(perceptron).input_size == 20
    lenet = nn.Sequential(nn.Conv2d(3, 2, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 5))
    assert model_from_module(lenet).input_size == 32
    assert model_from_module(Plain(), example=torch.zeros(1, 3, 40, 40)).input_size == 40
    assert model_from_module(lenet, input_size=48).input_size == 48


class Unlucky(nn.Module):
    def __init__(self):
        super().__init__()
        self.file = open(__file__)  # noqa: PTH123, SIM115

    def forward(self, x):
        return x


def test_what_cannot_be_used_is_refused_with_advice():
    with pytest.raises(InputError, match=r"expected a torch.nn.Module .* got a list"):
        check_module([])
    with pytest.raises(InputError, match=r"conv.weight, .*meta device .* net.to_empty"):
        check_module(Plain().to("meta"))
    lost = Plain()
    lost.head.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"^head.weight is not finite"):
        model_from_module(lost)
    with pytest.raises(InputError, match=r"no shape yet: .* Run the network once"):
        check_module(nn.Sequential(nn.LazyLinear(3)))
    apart = Plain()
    with FakeTensorMode():
        # A GPU that is not there.
        apart.head = nn.Linear(4, 2, device="cuda")
    with pytest.raises(InputError, match=r"several devices, cpu, cuda:0; .* net.to\('cuda:0'\)"):
        check_module(apart)
    unlucky = Unlucky()
    with pytest.raises(InputError, match=r"Unlucky cannot be copied \(TypeError"):
        model_from_module(unlucky)
    unlucky.file.close()
    with pytest.raises(InputError, match=r"mean and std together"):
        model_from_module(Plain(), mean=0.5)
    with pytest.raises(InputError, match=r"mean has 2 numbers, but the images have 3"):
        model_from_module(Plain(), mean=(0.5, 0.5), std=0.5)
    with pytest.raises(InputError, match=r"std > 0"):
        model_from_module(Plain(), mean=0.5, std=0.0)


@pytest.mark.filterwarnings("ignore:.*(deprecated|not supported)")
def test_scripted_and_quantised_networks_are_refused():
    with pytest.raises(InputError, match=r"TorchScript .* the nn.Module that it was made from"):
        check_module(torch.jit.script(nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"quantised"):
        check_module(torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2))))


@pytest.mark.gpu
def test_a_network_on_a_gpu_stays_there():
    net = seeded(Plain).cuda()
    before = state(net)
    model = model_from_module(net, input_size=32)
    assert_same(before, state(net))
    assert {t.device.type for t in model.net.state_dict().values()} == {"cpu"}


def test_a_model_by_name_and_the_same_in_memory_compute_the_same():
    named, live = load_model("tiny:subject"), model_from_module(tiny.subject())
    assert (named.mean, named.std, named.input_size) == (live.mean, live.std, live.input_size)
    assert torch.equal(named.net(IMAGES), live.net(IMAGES))
