import json

import pytest
import torch
from torch import nn

from polylight.checking import check, print_check
from polylight.cli import main
from polylight.networks import load_model

TEN = [
    ("torchvision/alexnet", 96),
    ("torchvision/squeezenet1_1", 64),
    ("torchvision/shufflenet_v2_x0_5", 64),
    ("torchvision/mobilenet_v3_small", 64),
    ("torchvision/swin_t", 64),
    ("torchvision/googlenet", 64),
    ("timm/vit_tiny_patch16_224", 224),
    ("timm/convnext_atto", 64),
    ("timm/levit_128s", 224),
    ("timm/xcit_nano_12_p16_224", 64),
]


class Half(nn.Module):
    """Of its layers, one has no gradient, one never runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.cut = Rounded()
        self.act = nn.ReLU()
        self.never = nn.Linear(2, 2)

    def forward(self, x):
        x = self.act(self.conv(x))
        return x.sum() + self.cut(x).sum()


class Rounded(nn.Module):
    def forward(self, x):
        return x.detach().round()


def test_a_network_is_told_layer_by_layer():
    net = Half()
    found = check(net, image_size=16)
    status = {layer.layer: layer for layer in found.layers}
    assert {name: x.status for name, x in status.items()} == {
        "conv": "scored",
        "act": "scored",
        "cut": "refused",
        "never": "refused",
    }
    assert "does not reach the image" in status["cut"].reason
    assert "does not run" in status["never"].reason
    assert (status["conv"].channels, status["conv"].size) == (4, "7x7")
    assert status["conv"].gradient > 0
    assert found.difference < 1e-5
    assert net.training
    assert list(found.to_pandas()["layer"]) == list(status)
    assert "2 of 4 layers can be scored" in str(found)


class Scaled(nn.Module):
    """Takes more than images."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x, scale):
        return self.fc((self.conv(x) * scale[:, None, None, None]).mean((2, 3)))


def test_a_network_of_several_arguments_is_checked():
    found = check(Scaled(), example=(torch.rand(1, 3, 16, 16), torch.full((1,), 3.0)))
    assert [layer.layer for layer in found.scored] == ["conv", "fc"]
    assert found.difference < 1e-5
    assert all(layer.gradient > 0 for layer in found.scored)


def test_what_is_refused_is_named_once_for_each_reason(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_check(f"{__name__}:Half", image_size=16)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("Refused: ") == 2
    assert "Refused: does not run; choose the module around it\nnever\n" in printed


def test_the_command_prints_a_table_or_json(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_check("tiny:subject")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("conv2 ") and "scored" in line for line in lines)
    assert main(["check", "tiny:subject", "--json", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {layer["status"] for layer in found["layers"]} == {"scored"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), TEN)
def test_networks_of_two_libraries_are_read_or_refused(name, size):
    found = check(load_model(name, "random"), image_size=size)
    assert found.difference < 1e-4
    assert len(found.scored) > 10
    assert all(layer.reason for layer in found.refused)
    tried = torch.tensor([x.gradient for x in found.layers if x.gradient is not None])
    assert (tried > 0).any()
