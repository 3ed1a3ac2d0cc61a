import pytest
import torch
from torch import nn

from polylight.errors import InputError
from polylight.networks import Layer, layers, list_layers, load_model
from polylight.networks.subject import Subject


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
        Layer("pool", "AvgPool2d", 8, (4, 4)),
        Layer("relu", "ReLU", 8, (4, 4)),
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


def test_maps_with_channels_last_are_refused_by_name():
    model = load_model("swin_t", "random")
    names = {layer.name: layer for layer in list_layers(model, 64)}
    # Blocks return [B, H, W, C]; what says where its channels are is read rightly.
    assert "features.1.0" not in names
    assert names["features.1.0.mlp.0"].channels == 384
    assert names["features.1.0.norm1"].channels == 96
    assert names["features.0.0"].channels == 96
    with pytest.raises(InputError, match=r"'features.1.0' .* channels last, \[1, 16, 16, 96\]"):
        Subject(model, ["features.1.0"], 64)
