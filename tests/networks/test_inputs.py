"""What networks are shown, and how they compute: whatever people have, or one clear error."""

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput
from polylight.errors import InputError
from polylight.kernels import sample
from polylight.networks import list_layers, load_model
from polylight.networks.copying import deep_copy, unwrapped
from polylight.networks.images import crop, from_picture, picture
from polylight.networks.layers import noise
from polylight.networks.live import check_module, model_from_module
from polylight.networks.model import Model
from polylight.networks.sizes import at_size, default_size, works
from polylight.networks.subject import Subject

SIZE = 16


class Net(nn.Module):
    """A convolution, something in between, and a second convolution."""

    def __init__(self, between=lambda net, x: x, channels=3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.first = nn.Conv2d(channels, 6, 3, 2, 1)
            self.norm = nn.BatchNorm2d(6)
            self.norm.running_mean.normal_()
            self.last = nn.Conv2d(6, 4, 3, 1, 1)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.norm(self.first(x))))


def model(net, channels=3, **fields):
    """A model as it comes, without the checks of loading."""
    half = (0.5,) * channels
    net = net.eval().requires_grad_(False)
    return Model("net", net, half, half, SIZE, "0" * 32, "live", **fields)


def subject(net, layers=("last",), **fields):
    channels = fields.pop("channels", 3)
    return Subject(model(net, channels, **fields), list(layers), SIZE)


def images(channels=3, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, channels, SIZE, SIZE, generator=generator)


def gradient(cut, shown):
    """The layer's output, and the gradient of its sum."""
    shown = shown.clone().requires_grad_()
    out = cut(shown * 1.0)[0].post
    return out.detach(), torch.autograd.grad(out.sum(), shown)[0]


# --- what is shown


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_kernels_sample_any_number_of_channels(channels, backend):
    maps = torch.tensor([[[0.9, 0.2, 0.1], [-0.2, 1.1, -0.2]]]).repeat(3, 1, 1)
    mean, std = torch.linspace(0.2, 0.6, channels), torch.linspace(0.1, 0.4, channels)
    results = []
    for name in (backend, "torch"):
        shown = images(channels).requires_grad_()
        seen = sample(shown, maps, SIZE, mean, std, torch.float32, backend=name)
        (grad,) = torch.autograd.grad((seen * seen.detach()).sum(), shown)
        assert seen.is_contiguous(memory_format=torch.channels_last)
        results.append((seen.detach(), grad))
    torch.testing.assert_close(*(r[0] for r in results), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*(r[1] for r in results), atol=1e-3, rtol=1e-4)


def test_pictures_of_channels():
    rgb = images()
    assert picture(rgb) is rgb
    assert from_picture(rgb, 3) is rgb
    grey = images(1)
    assert torch.equal(picture(grey), grey.expand(-1, 3, -1, -1))
    assert torch.equal(from_picture(picture(grey), 1), grey)
    two = images(2)
    assert torch.equal(picture(two), two[:, [0, 1, 1]])
    many = images(7)
    assert picture(many).shape == (3, 3, SIZE, SIZE)
    # Where all channels are equal, it is grey.
    torch.testing.assert_close(picture(many[:, :1].expand(-1, 7, -1, -1)), picture(many[:, :1]))
    quantised = (many * 255).round().to(torch.uint8)
    found = picture(quantised)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found / 255, picture(quantised / 255), atol=0.51 / 255, rtol=0)
    with pytest.raises(InputError, match="sees 4 channels"):
        from_picture(rgb, 4)


def test_luma_is_that_of_bt601():
    found = from_picture(torch.eye(3)[..., None, None], 1).flatten().tolist()
    assert found == pytest.approx([0.299, 0.587, 0.114])


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_networks_of_any_number_of_channels(channels):
    net = Net(channels=channels)
    cut = subject(net, channels=channels)
    shown = images(channels)
    torch.testing.assert_close(cut(shown)[0].post, net((shown - 0.5) / 0.5), atol=1e-5, rtol=1e-4)
    layer_input = LayerInput(model(net, channels), SIZE)
    pooled = layer_input.pooled(shown, ["last"])["last"]
    torch.testing.assert_close(pooled, net.norm(net.first((shown - 0.5) * 2)).mean((2, 3)))
    with pytest.raises(InputError, match=rf"expected images \[B, {channels}, 16, 16\]"):
        cut(images(channels + 1))


def test_a_network_that_is_not_square_sees_the_middle():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Flatten(), nn.Linear(6 * 4 * 8, 5))
    wide = model(net, window=(8, 16))
    assert [layer.size for layer in list_layers(wide, SIZE)] == [(4, 8), (), ()]
    cut = Subject(wide, ["2"], SIZE)
    shown = images()
    expected = net((shown[:, :, 4:12] - 0.5) / 0.5)
    torch.testing.assert_close(cut(shown)[0].post, expected, atol=1e-5, rtol=1e-4)
    identity = torch.eye(2, 3).repeat(3, 1, 1)
    for backend in ("torch", "numba"):
        seen = cut.look(shown, identity, backend=backend)[0].post
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-3)
    assert wide.window_at(32) == (16, 32)
    tall = crop(torch.arange(25).view(5, 5), (5, 2))
    assert tall[0].tolist() == [1, 2]


def test_further_arguments_come_from_an_example():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, 2, 1)
            self.head = nn.Linear(6, 2)

        def forward(self, image, mask, scale):
            pooled = torch.cat([self.conv(image).mean((2, 3)), scale * mask], 1)
            return {"logits": self.head(pooled), "scale": scale}

    net = Two()
    example = torch.rand(2, 1, 8, 16), torch.tensor([[1.0, 2.0]]), 3
    made = model_from_module(net, example=example)
    assert (made.channels, made.input_size, made.window) == (1, 16, (8, 16))
    cut = Subject(made, ["head"], 16)
    shown = images(1)
    seen = (shown[:, :, 4:12] - made.mean[0]) / made.std[0]
    expected = net(seen, torch.tensor([[1.0, 2.0]] * 3), 3)["logits"]
    torch.testing.assert_close(cut(shown)[0].post, expected, atol=1e-5, rtol=1e-4)
    other = model_from_module(net, example=(*example[:2], 4))
    assert other.weights_hash != made.weights_hash
    assert cut.cast(torch.bfloat16)(shown)[0].post.dtype == torch.bfloat16
    with pytest.raises(InputError, match="example of all its inputs"):
        list_layers(model_from_module(net, input_size=16), 16)
    with pytest.raises(InputError, match="has to be images"):
        model_from_module(net, example=((example[0], 1),))


@pytest.mark.parametrize("wrap", [lambda x: {"out": x}, lambda x: (x, None), lambda x: [x]])
def test_a_network_may_return_anything(wrap):
    class Wrapped(Net):
        def forward(self, x):
            return wrap(super().forward(x))

    net = Wrapped()
    torch.testing.assert_close(
        subject(net)(images())[0].post, subject(Net())(images())[0].post, atol=0, rtol=0
    )
    assert [layer.name for layer in list_layers(model(net), SIZE)] == ["first", "norm", "last"]


# --- sizes


def fixed(side, channels=3):
    net = nn.Sequential(nn.Conv2d(channels, 2, 3, 2, 1), nn.Flatten())
    net.append(nn.Linear(2 * (side // 2) ** 2, 3))
    net.pretrained_cfg = {"input_size": (channels, side, side), "mean": (0.5,) * channels}
    net.pretrained_cfg["std"] = net.pretrained_cfg["mean"]
    return net


def large():
    return fixed(224)


def small():
    return fixed(32)


def free():
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1))
    net.pretrained_cfg = {"input_size": (3, 224, 224)}
    return net


@pytest.mark.parametrize(("name", "size"), [("large", 224), ("small", 32), ("free", 128)])
def test_the_default_size_is_one_that_the_network_takes(name, size):
    assert default_size(load_model(f"{__name__}:{name}"), 128) == size


def test_a_size_that_does_not_work_names_one_that_does():
    with pytest.raises(InputError, match=r"images of 212 px .*Set --model.image_size 223\."):
        Subject(load_model(f"{__name__}:large"), ["2"], 212)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_fits_its_networks_to_another_size(name):
    import timm

    own = load_model(f"timm/{name}", "random")
    assert default_size(own, 128) == 224
    assert at_size(own, 224) is own
    assert not works(own, 160)
    fitted = at_size(own, 160)
    assert works(fitted, 160)
    assert fitted.weights_hash == own.weights_hash
    if name.startswith("vit"):
        other = timm.create_model(name, dynamic_img_size=True).eval()
        other.load_state_dict(own.net.state_dict())
        shown = torch.rand(1, 3, 160, 160)
        with torch.no_grad():
            torch.testing.assert_close(fitted.net(shown), other(shown), atol=1e-5, rtol=1e-4)
        # A size that no patch fits into.
        assert at_size(own, 8) is own


# --- how it computes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_type_are_computed_in_float32(dtype, monkeypatch):
    net = Net().to(dtype)
    monkeypatch.setitem(globals(), "typed", lambda: net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    loaded = load_model(f"{__name__}:typed")
    assert {p.dtype for p in loaded.net.parameters()} == {torch.float32}
    monkeypatch.setitem(globals(), "typed", lambda: Net().float())
    # The hash is that of the weights as they came.
    assert load_model(f"{__name__}:typed").weights_hash != loaded.weights_hash
    exact = Net()
    exact.load_state_dict(before)
    cut = Subject(loaded, ["last"], SIZE)
    expected = exact.eval()(loaded.preprocess(images()))
    torch.testing.assert_close(cut(images())[0].post, expected, atol=1e-5, rtol=1e-4)


def compiled():
    return torch.compile(Net())


def partly_compiled():
    net = Net()
    net.first = torch.compile(net.first)
    net.last.compile()
    return net


class CompiledForward(Net):
    @torch.compile
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("name", ["compiled", "partly_compiled", "CompiledForward"])
def test_of_compiled_networks_the_original_is_used(name):
    loaded = load_model(f"{__name__}:{name}")
    assert [layer.name for layer in list_layers(loaded, SIZE)] == ["first", "norm", "last"]
    plain = Subject(load_model(f"{__name__}:Net"), ["last"], SIZE)
    assert torch.equal(Subject(loaded, ["last"], SIZE)(images())[0].post, plain(images())[0].post)
    assert type(unwrapped(loaded.net)) is type(loaded.net)


def weight_normed(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(net.first)


def pruned(net):
    prune.l1_unstructured(net.first, "weight", 0.5)


@pytest.mark.parametrize(
    "change", [weight_normed, pruned, lambda net: nn.utils.spectral_norm(net.first)]
)
def test_weights_that_a_hook_works_out(change):
    net = Net()
    change(net)
    net(images())
    net.eval()
    assert not net.first.weight.is_leaf
    expected = net((images() - 0.5) * 2).detach()
    before = copy.deepcopy(net.state_dict())
    cut = subject(net)
    assert cut.num_folded == 1
    torch.testing.assert_close(cut(images())[0].post, expected, atol=1e-5, rtol=1e-4)
    assert net.state_dict().keys() == before.keys()


def test_a_hook_that_replaces_a_weight_is_left_alone():
    net = Net()
    weight = net.first.weight.detach()
    del net.first._parameters["weight"]
    net.first.register_forward_pre_hook(lambda conv, _: setattr(conv, "weight", weight * 2))
    net.first.weight = weight
    cut = subject(net)
    torch.testing.assert_close(cut(images())[0].post, net((images() - 0.5) * 2))


def test_tensors_that_autograd_made_are_copied():
    net = Net()
    net.cache = {"seen": [net.first(images())]}
    twin = deep_copy(net)
    assert torch.equal(twin.cache["seen"][0], net.cache["seen"][0])
    assert twin.cache["seen"][0].grad_fn is None
    assert net.cache["seen"][0].grad_fn is not None
    assert subject(net)(images())[0].post.shape == (3, 4, 8, 8)
    net.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied"):
        subject(net)


def doubled_sigmoid(net, x):
    x = torch.sigmoid(x)
    x *= 2
    return x


def without_gradient(net, x):
    with torch.no_grad():
        return x * 2


def both(net, x):
    return without_gradient(net, doubled_sigmoid(net, x))


@pytest.mark.parametrize(
    ("between", "same"),
    [
        (doubled_sigmoid, lambda net, x: torch.sigmoid(x) * 2),
        (without_gradient, lambda net, x: x * 2),
        (both, lambda net, x: torch.sigmoid(x) * 4),
    ],
)
def test_the_gradient_goes_around_what_would_stop_it(between, same):
    found, expected = (
        gradient(subject(Net(between)), images()),
        gradient(subject(Net(same)), images()),
    )
    torch.testing.assert_close(found, expected)
    # In another type, too.
    twin = subject(Net(between)).cast(torch.bfloat16)
    assert gradient(twin, images())[1].any()


def test_a_network_may_write_into_its_images():
    class Writing(Net):
        def forward(self, x):
            x.mul_(3)
            return super().forward(x)

    net = Writing()
    expected = Net().eval()((images() - 0.5) * 6)
    torch.testing.assert_close(subject(net)(images())[0].post, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (lambda net, x: x.detach(), "the gradient of last does not reach the image"),
        (lambda net, x: torch.from_numpy(x.detach().numpy()), "does not reach the image"),
        (lambda net, x: F.dropout(x), "'last' of net returns something else each time.*random"),
        (lambda net, x: x + torch.rand_like(x), "forward is random"),
        (lambda net, x: x / x.abs().max(), "depend on its company"),
        (lambda net, x: F.batch_norm(x, None, None, training=True), "depend on its company"),
    ],
)
def test_images_that_cannot_climb_are_refused_by_name(between, message, caplog):
    with pytest.raises(InputError, match=message):
        subject(Net(between))
    # The layer before can be scored.
    assert subject(Net(between), ["first"]).num_folded >= 0
    assert "folded" not in caplog.text


def test_a_backward_that_does_not_exist_is_named():
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("no backward here")

    with pytest.raises(InputError, match=r"cannot be computed \(NotImplementedError: no backward"):
        subject(Net(lambda net, x: OneWay.apply(x)))


def test_looking_needs_no_gradient():
    net = Net(lambda net, x: x.detach())
    looking = Subject(model(net), ["first", "last"], SIZE, climbed=False)
    assert looking.climbable() == ["first"]
    quiet = Subject(model(Net(without_gradient)), ["first", "last"], SIZE, climbed=False)
    assert quiet.climbable() == ["first", "last"]


def test_dropout_is_off():
    net = Net(lambda net, x: F.dropout(net.drop(x), 0.5, net.training))
    net.drop = nn.Dropout(0.5)
    assert torch.equal(subject(net)(images())[0].post, subject(Net())(images())[0].post)


def other_device(net):
    net.last.to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net, "norm", nn.BatchNorm2d(6, track_running_stats=False)),
         "norm is a batch norm without running statistics.*track_running_stats=True"),
        (lambda net: net.to("meta"), "on the meta device.*to_empty"),
        (lambda net: net.last.weight.data.fill_(torch.nan), "last.weight is not finite"),
        (lambda net: net.last.bias.data.fill_(torch.inf), "last.bias is not finite"),
        (lambda net: setattr(net, "head", nn.LazyLinear(3)), "head.weight.* has no shape yet"),
        (lambda net: net.register_parameter(
            "q", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)),
         "q is quantised"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_scored_are_refused_when_they_are_loaded(
    change, message, monkeypatch
):
    net = Net()
    change(net)
    monkeypatch.setitem(globals(), "bad", lambda: net)
    with pytest.raises(InputError, match=message):
        load_model(f"{__name__}:bad")


def test_scripted_networks_are_refused(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(nn.Conv2d(3, 2, 3), images())
    monkeypatch.setitem(globals(), "bad", lambda: nn.Sequential(scripted))
    with pytest.raises(InputError, match=r"TorchScript.*nn\.Module that it was made from"):
        load_model(f"{__name__}:bad")


def test_masks_may_be_infinite():
    net = Net()
    net.register_buffer("mask", torch.full((2, 2), -torch.inf))
    check_module(net)


# --- kernels that fail are no silence


def test_an_error_of_the_rewritten_network_is_told(monkeypatch):
    def broken(net, found):
        def forward(x):
            raise RuntimeError("no cache")

        net.last.forward = forward

    monkeypatch.setattr("polylight.networks.subject.fuse", broken)
    with pytest.raises(InputError, match=r"made fast \(RuntimeError: no cache\).*kernels torch"):
        subject(Net())


def test_a_grey_embedder_embeds_colours():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    embedder = Embedder(model(net, 1))
    grey = picture(images(1))
    assert embedder(grey).shape == (3, 4)
    assert noise(net, 8, 1).shape == (1, 1, 8, 8)
