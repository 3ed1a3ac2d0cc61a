import pytest
import torch
from torch import nn

from polylight.ascent.objective import make_targets, read
from polylight.errors import InputError
from polylight.networks import Layer, layers, list_layers, load_model
from polylight.networks.subject import Subject
from polylight.neurons import LayerShape, parse_neurons


class Assorted(nn.Module):
    """One module of every kind that a listing has to tell apart."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.skip = nn.Identity()
        self.never = nn.Conv2d(3, 3, 1)
        self.pair = Pair()
        self.pool = nn.AvgPool2d(4)
        self.patches = Tokens()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.skip(x)
        x, _ = self.pair(x)
        x = self.relu(self.pool(x))
        x = self.norm(self.patches(x))
        return self.fc(x.mean(1))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def assorted():
    return Assorted()


def normed():
    return nn.Sequential(nn.Conv2d(3, 6, 1), LayerNorm2d(6))


def always_broken():
    class Broken(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("out of order")

    return Broken(nn.Conv2d(3, 6, 1))


def test_layers_come_in_the_order_of_their_last_run():
    found = list_layers(load_model(f"{__name__}:assorted"), 16)
    assert found == [
        Layer("conv", "Conv2d", 8, (16, 16)),
        Layer("pair#0", "Pair", 8, (16, 16)),
        Layer("pair#1", "Pair", 8, (16, 16)),
        Layer("pool", "AvgPool2d", 8, (4, 4)),
        Layer("relu", "ReLU", 8, (4, 4), calls=2),
        Layer("patches", "Tokens", 8, (16,)),
        Layer("norm", "LayerNorm", 8, (16,)),
        Layer("fc", "Linear", 5, ()),
    ]


def test_layer_norm_of_maps_has_its_channels_second():
    assert list_layers(load_model(f"{__name__}:normed"), 10)[-1] == Layer(
        "1", "LayerNorm2d", 6, (10, 10)
    )


def test_layers_of_a_real_network():
    found = {layer.name: layer for layer in list_layers(load_model("efficientnet_lite0"), 128)}
    assert found["blocks.4"] == Layer("blocks.4", "Sequential", 112, (8, 8))
    assert found["classifier"] == Layer("classifier", "Linear", 1000, ())
    names = list(found)
    assert names.index("blocks.0.0.conv_dw") < names.index("blocks.0.0") < names.index("blocks.0")
    assert "" not in found
    assert "bn1.drop" not in found


def test_listing_leaves_the_network_alone():
    model = load_model("resnet18", "random")
    list_layers(model, 32)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.net.modules())


def test_smallest_size_that_works_is_named():
    model = load_model("squeezenet1_1", "random")
    with pytest.raises(
        InputError, match=r"images of 16 px are too small for squeezenet1_1.* is 17 px"
    ):
        list_layers(model, 16)
    assert list_layers(model, 17)


def test_wrong_size_of_a_transformer_is_named():
    model = load_model("timm/vit_tiny_patch16_224", "random")
    with pytest.raises(InputError, match=r"of the wrong size .* 224 px"):
        list_layers(model, 256)


@pytest.mark.parametrize("size", [0, -3])
def test_size_must_be_positive(size):
    with pytest.raises(InputError, match="at least 1 pixel"):
        list_layers(load_model(f"{__name__}:normed"), size)


def test_other_errors_of_the_network_are_named_with_what_it_was_shown():
    message = (
        r"always_broken does not run on an image \[1, 3, 10, 10\] \(RuntimeError: .*out of order"
    )
    with pytest.raises(InputError, match=message):
        list_layers(load_model(f"{__name__}:always_broken"), 10)


def test_printed_table_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    layers("efficientnet_lite0", image_size=128)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("blocks.4 " in line and "112" in line and "8x8" in line for line in lines)
    assert "128 px" in lines[0]


def test_print_uses_the_models_own_size(capsys):
    layers(f"{__name__}:normed")
    assert "224x224" in capsys.readouterr().out
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("size", [64, 224])
def test_maps_with_channels_last_are_read_along_their_last_axis(size):
    model = load_model("swin_t", "random")
    names = {layer.name: layer for layer in list_layers(model, size)}
    side = size // 4
    assert names["features.1.0"] == Layer("features.1.0", "SwinTransformerBlock", 96, (side, side))
    assert names["features.1.0.mlp.0"].channels == 384
    assert names["features.1.0.norm1"].channels == 96
    assert names["features.0.0"].channels == 96
    assert names["permute"] == Layer("permute", "Permute", 768, (size // 32, size // 32))
    subject = Subject(model, ["features.1.0"], size)
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.net.features[1][0](model.net.features[0](model.preprocess(images)))
    found = subject(images)[0].post
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), rtol=0, atol=1e-4)


def test_channels_are_told_by_use_where_no_other_size_is_taken():
    model = load_model("timm/swin_tiny_patch4_window7_224", "random")
    names = {layer.name: layer for layer in list_layers(model, 224)}
    assert names["layers.0.blocks.1"].channels == 96
    assert names["layers.0.blocks.1"].size == (56, 56)
    assert names["layers.1.downsample.norm"].channels == 384
    assert names["layers.3.blocks.0"].channels == 768
    assert names["patch_embed"].channels == 96


def test_modules_without_a_batch_are_no_layers():
    model = load_model("swin_v2_t", "random")
    names = {layer.name for layer in list_layers(model, 64)}
    assert "features.1.0.attn" in names
    assert not {name for name in names if "cpb_mlp" in name}
    with pytest.raises(InputError, match="the same for any number of images"):
        Subject(model, ["features.1.0.attn.cpb_mlp"], 64)


class Calls(nn.Module):
    """A module that runs three times, a recurrent one, and names that the grammar has to quote."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.again = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.heads = nn.ModuleDict({"odd: a,b@(1)": nn.Linear(5, 2), "plain": nn.Linear(5, 3)})
        self.both = Both()

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.act(self.again(x))
        x, _ = self.lstm(x.flatten(2).transpose(1, 2))
        x = x.mean(1)
        found = self.both(x)
        return self.heads["odd: a,b@(1)"](found["first"]) + self.heads["plain"](x).sum()


class Both(nn.Module):
    def forward(self, x):
        return {"first": x * 2, "rest": (x * 3, [x * 4])}


def calls():
    torch.manual_seed(3)
    return Calls()


def test_calls_and_elements_are_read_as_the_network_makes_them():
    model = load_model(f"{__name__}:calls")
    net = model.net
    layers = [
        "again[0]",
        "act[1]",
        "again",
        "again[2]",
        "lstm#0",
        "both#first",
        "both#rest.1.0",
        '"heads.odd: a,b@(1)"',
    ]
    subject = Subject(model, layers, 16)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = net.stem(model.preprocess(images))
        before, after = [], []
        for _ in range(3):
            before.append(net.again(x))
            x = before[-1].clamp_min(0)
            after.append(x)
        out, _ = net.lstm(x.flatten(2).transpose(1, 2))
        mean = out.mean(1)
        odd = net.heads["odd: a,b@(1)"](mean * 2)
        expected = [before[0], after[1], before[2], before[2], out.transpose(1, 2)]
        found = subject(images)
        for index, value in enumerate(expected):
            torch.testing.assert_close(found[index].post, value)
        torch.testing.assert_close(found[1].pre, before[1])
        torch.testing.assert_close(found[5].post, mean * 2)
        torch.testing.assert_close(found[6].post, mean * 4)
        torch.testing.assert_close(found[7].post, odd)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("again[3]", r"again runs 3 times, so its calls are \[0\] to \[2\]"),
        ("lstm", "returns 3 tensors; choose one of lstm#0, lstm#1.0, lstm#1.1"),
        ("lstm#2", "returns no '2'; choose one of lstm#0"),
        ("act#0", "returns one tensor, which has no elements"),
        ("both", "choose one of both#first, both#rest.0, both#rest.1.0"),
        ("lstm#1.0", "the same for any number of images|its first axis is not the batch"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(layer, message):
    with pytest.raises(InputError, match=message):
        Subject(load_model(f"{__name__}:calls"), [layer], 16)


class Alternating(nn.Module):
    """A module that returns a pair at first and one tensor afterwards."""

    class Inner(nn.Module):
        def forward(self, x, *, pair):
            return (x, 2 * x) if pair else x

    def __init__(self):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 3), self.Inner()

    def forward(self, x):
        x = self.conv(x)
        return self.inner(self.inner(x, pair=True)[1], pair=False)


def test_elements_are_those_of_the_call_that_is_asked_for():
    model = load_model(f"{__name__}:Alternating")
    assert Subject(model, ["inner[0]#1", "inner"], 16).channels == [4, 4]
    message = r"'inner\[0\]' .* returns 2 tensors; choose one of inner\[0\]#0, inner\[0\]#1"
    with pytest.raises(InputError, match=message):
        Subject(model, ["inner[0]"], 16)


class Patches(nn.Module):
    """A class token and a register before nine patches."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 2, 6))
        self.block = nn.Sequential(nn.Linear(6, 6), nn.GELU())
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        return self.head(self.block(x)[:, 0])


def patches():
    torch.manual_seed(4)
    return Patches()


def test_tokens_before_the_patches_are_left_out_of_the_mean():
    subject = Subject(load_model(f"{__name__}:patches"), ["block", "embed"], 24)
    assert subject.shapes["block"] == LayerShape(6, (3, 3), subject.depths[0], 2)
    assert subject.shapes["embed"].prefix == 0
    activation = subject(torch.rand(2, 3, 24, 24))[0]
    assert activation.post.shape == (2, 6, 11)
    torch.testing.assert_close(activation.pooled(), activation.post[..., 2:].mean(2))
    neurons = ["block:3", "block:3@cls", "block:3@1", "block:3@center", "block:3@2x0"]
    places = [slice(2, 11), slice(0, 1), slice(1, 2), slice(2 + 4, 7), slice(2 + 6, 9)]
    for neuron, place in zip(parse_neurons(neurons, subject.shapes), places, strict=True):
        targets = make_targets([neuron] * 2, subject.shapes, {}, 1)
        value = read({0: activation}, targets, 6).value
        torch.testing.assert_close(value, activation.post[:, 3, place].mean(1))
