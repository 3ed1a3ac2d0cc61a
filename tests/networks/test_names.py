"""Names of networks outside the named libraries, and options of their constructors."""

import json
import socket
import sys
from urllib.error import URLError

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from polylight.cli import main
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.networks import load_model
from polylight.networks.load import hash_weights
from polylight.networks.zoo import find_architecture
from polylight.run.manifest import read_manifest
from polylight.run.store import read_rows

CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 5,
    "pretrained_cfg": {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "input_size": [3, 48, 48],
        "num_classes": 5,
    },
}


class Wide(nn.Module):
    def __init__(self, width, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


INSTANCE = Wide(4).double().train()


def failing(kind="value"):
    raise KeyError("no such dataset")


def open_ended(**options):
    return Wide(4, **options)


@pytest.fixture
def folder(tmp_path):
    """A small network of timm as ``save_for_hf`` writes it."""
    net = timm.create_model("resnet10t", num_classes=5)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(CONFIG))
    save_file(net.state_dict(), tmp_path / "net" / "model.safetensors")
    return tmp_path / "net", net


def test_a_folder_in_timms_format(folder, monkeypatch):
    path, net = folder
    model = load_model(f"local-dir:{path}")
    assert (model.source, model.weights_hash) == ("local-dir", hash_weights(net))
    assert (model.mean, model.std, model.input_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 48)
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_model("local-dir:~/net").weights_hash == model.weights_hash
    other = load_model(f"local-dir:{path}", "random")
    assert (other.source, other.net.num_classes) == ("random", 5)
    assert other.weights_hash != model.weights_hash
    named = load_model("timm/resnet10t", str(path / "model.safetensors"))
    assert named.weights_hash == model.weights_hash


def test_a_folder_that_timm_itself_wrote(tmp_path):
    net = timm.create_model("resnet10t", num_classes=4, in_chans=1)
    timm.models.save_for_hf(net, tmp_path / "net", safe_serialization=True)
    model = load_model(f"local-dir:{tmp_path}/net")
    assert model.weights_hash == hash_weights(net)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model.net(images), net.eval()(images))
    other = load_model(f"local-dir:{tmp_path}/net", "random", {"num_classes": 3})
    assert other.net(images).shape == (2, 3)


def test_folders_that_are_none_of_timms(folder, tmp_path):
    path, _ = folder
    with pytest.raises(InputError, match=r"no file .*nowhere/config.json.*save_for_hf"):
        load_model(f"local-dir:{tmp_path}/nowhere")
    (path / "config.json").write_text(json.dumps({**CONFIG, "architecture": "resnet1000"}))
    with pytest.raises(InputError, match=r"could not be loaded .*Unknown model \(resnet1000\)"):
        load_model(f"local-dir:{path}")
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"conv1.weight": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(InputError, match=r"could not be loaded \(RuntimeError.*weights that fit"):
        load_model(f"local-dir:{path}")


def test_the_hugging_face_hub_is_asked_through_timm(folder, monkeypatch):
    path, net = folder
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    assert load_model("hf-hub:someone/small").weights_hash == hash_weights(net)
    assert asked == [("someone/small", "config.json"), ("someone/small", "model.safetensors")]


def refuse_network(*args, **kwargs):
    raise OSError("Network is unreachable")


def test_hubs_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise URLError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(InputError, match=r"hf-hub:a/b could not be loaded.*local-dir:FOLDER"):
        load_model("hf-hub:a/b")
    with pytest.raises(InputError, match=r"hub:a/b:net: .*not be fetched.*hub:/folder:entry"):
        load_model("hub:a/b:net")


@pytest.fixture
def hubconf(tmp_path):
    (tmp_path / "hubconf.py").write_text(
        "from torch import nn\n"
        "dependencies = ['torch']\n"
        "def small(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())\n"
        "def broken():\n    raise ValueError('out of order')\n"
    )
    return tmp_path


def test_an_entry_of_torch_hub(hubconf, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks"))
    model = load_model(f"hub:{hubconf}:small", options={"width": 6})
    assert (model.source, model.net[0].out_channels) == ("hub", 6)
    monkeypatch.setenv("HOME", str(hubconf.parent))
    assert load_model(f"hub:~/{hubconf.name}:small").net[0].out_channels == 4
    asked = []

    def load(*args, **known):
        asked.append((args, known))
        return nn.Conv2d(3, 4, 3)

    monkeypatch.setattr(torch.hub, "load", load)
    load_model("hub:owner/repository:v1:small")
    assert asked[0][0] == ("owner/repository:v1", "small")
    assert asked[0][1] == {"source": "github", "trust_repo": True, "verbose": False}


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ("smal", {}, "Cannot find callable smal in hubconf; see the hubconf.py"),
        ("small", {"wdth": 6}, "unexpected keyword argument 'wdth'.*hubconf.py"),
        ("broken", {}, r"broken raised ValueError: out of order \(hubconf.py, line 6\)"),
    ],
)
def test_entries_that_cannot_be_used(hubconf, entry, options, message):
    with pytest.raises(InputError, match=message):
        load_model(f"hub:{hubconf}:{entry}", options=options)


def test_a_folder_without_entries_is_no_repository(tmp_path):
    with pytest.raises(InputError, match=r"no file .*hubconf\.py"):
        load_model(f"hub:{tmp_path}:small")
    with pytest.raises(InputError, match="expected hub:owner/repository:entry"):
        load_model("hub:owner/repository")


def test_a_module_may_be_called_hub(tmp_path, monkeypatch):
    (tmp_path / "hub.py").write_text("from torch import nn\ndef net(): return nn.Conv2d(3, 2, 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_model("hub:net").source == "factory"
    del sys.modules["hub"]


@pytest.mark.parametrize("name", ["Wide", "open_ended"])
def test_a_class_or_a_function_takes_options(name):
    options = {"width": 7} if name == "Wide" else {"num_classes": 9}
    model = load_model(f"{__name__}:{name}", options=options)
    assert model.net.fc.weight.shape == ((3, 7) if name == "Wide" else (9, 4))
    assert model.identity()["options"] == json.dumps(options)


def test_an_instance_is_left_as_it_is():
    model = load_model(f"{__name__}:INSTANCE")
    assert model.net.fc.weight.dtype == torch.float32
    assert not model.net.training
    assert INSTANCE.training
    assert INSTANCE.fc.weight.dtype == torch.float64
    assert INSTANCE.fc.weight.requires_grad
    assert "options" not in model.identity()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Wide", None, r"Wide cannot be called without options {width: …}"),
        ("Wide", {"width": 3, "num_class": 2}, "takes no option 'num_class'.*: num_classes"),
        ("INSTANCE", {"width": 3}, "INSTANCE is a network already"),
        ("failing", None, r"failing raised KeyError: 'no such dataset' \(test_names.py, line \d+"),
        ("open_ended", {"depth": 2}, "open_ended raised TypeError: .*'depth'"),
        ("Wide", {"width": "many"}, "Wide raised TypeError: "),
        ("Wide", [3], r"expected options by name, such as {num_classes: 10}, got \[3\]"),
    ],
)
def test_factories_that_cannot_be_called(name, options, message):
    with pytest.raises(InputError, match=message):
        load_model(f"{__name__}:{name}", options=options)


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "timm/resnet10t"])
def test_options_of_a_library(name):
    model = load_model(name, "random", {"num_classes": 7})
    assert model.net(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(InputError, match=r"takes no option 'num_clases'.*nearest: num_classes"):
        load_model(name, "random", {"num_clases": 7})
    with pytest.raises(InputError, match=r"cannot be built with the options {num_classes: 'x'}"):
        load_model(name, "random", {"num_classes": "x"})


@pytest.mark.parametrize(
    ("name", "option"),
    [("torchvision/squeezenet1_1", "weights"), ("timm/resnet10t", "pretrained")],
)
def test_weights_are_no_option(name, option):
    with pytest.raises(InputError, match=f"'{option}' is no option of .*--model.subject_weights"):
        load_model(name, "random", {option: "DEFAULT"})


def test_a_transformer_of_another_size_says_its_own():
    with torch.device("meta"):
        built = find_architecture("torchvision/vit_b_32")
        net = built.untrained({"image_size": 64, "num_classes": 4}, ())
    assert built.preprocessing(net).input_size == 64


def test_published_weights_of_other_classes():
    with pytest.raises(InputError, match=r"num_classes.*weights='random' or a checkpoint"):
        load_model("torchvision/squeezenet1_1", options={"num_classes": 7})
    with pytest.raises(InputError, match="installed weights of efficientnet_lite0 do not fit"):
        load_model("efficientnet_lite0", options={"num_classes": 7})


def test_a_checkpoint_fits_the_options(tmp_path):
    torch.save(Wide(6, 2).state_dict(), tmp_path / "c.pt")
    options = {"width": 6, "num_classes": 2}
    model = load_model(f"{__name__}:Wide", str(tmp_path / "c.pt"), options)
    assert model.source == "checkpoint"
    with pytest.raises(InputError, match="of another shape"):
        load_model(f"{__name__}:Wide", str(tmp_path / "c.pt"), {"width": 6})


def test_options_belong_to_the_identity_of_a_run():
    cpu = torch.device("cpu")
    subject = f"{__name__}:open_ended"

    def record(**given):
        return PolysemanticityModule(subject, "tiny:embedder", **given).manifest(cpu)

    plain, same = record(), record(subject_options={"num_classes": 3})
    assert "options" not in plain.subject
    assert same.subject == {**plain.subject, "options": '{"num_classes": 3}'}
    assert same.reference_hash != plain.reference_hash
    assert record(subject_options={}).subject == plain.subject


def fit(run, *options):
    subject = ["--model.subject", f"{__name__}:Wide", *options]
    model = {"embedder": "tiny:embedder", "image_size": 16, "reference_images": 4}
    few = {"max_steps": 4, "max_images": 2, "pool_size": 2}
    settings = [f"--model.{name}={value}" for name, value in {**model, **few}.items()]
    where = ["--run_dir", str(run), "--data.neurons", "conv:6", "--trainer.accelerator", "cpu"]
    return main(["fit", *where, *subject, *settings])


def test_options_on_the_command_line(tmp_path, capsys, caplog):
    run = tmp_path / "run"
    assert fit(run, "--model.subject_options", "{wdth: 7}") == 2
    assert "takes no option 'wdth'" in capsys.readouterr().err
    assert not run.exists()
    with caplog.at_level("WARNING", "polylight"):
        assert fit(run, "--model.subject_options", "{width: 7, num_classes: 2}") == 0
    assert caplog.text == ""
    assert [row.neuron for row in read_rows(run)] == ["conv:6"]
    assert read_manifest(run).subject["options"] == '{"num_classes": 2, "width": 7}'
    capsys.readouterr()
    # Other options make another network.
    assert fit(run, "--model.subject_options", "{width: 8, num_classes: 2}") == 2
    assert "holds a run of other settings" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["dotted", "file"])
def test_options_one_by_one_and_in_a_file(spelling, tmp_path):
    given = ["--model.subject_options.width=7", "--model.subject_options.num_classes=2"]
    if spelling == "file":
        (tmp_path / "mine.yaml").write_text(
            "model:\n  subject_options:\n    width: 7\n    num_classes: 2\n"
        )
        given = ["--config", str(tmp_path / "mine.yaml")]
    assert fit(tmp_path / "run", *given) == 0
    options = read_manifest(tmp_path / "run").subject["options"]
    assert options == '{"num_classes": 2, "width": 7}'


@pytest.mark.parametrize("command", ["layers", "check"])
def test_options_of_the_other_commands(command, capsys):
    assert main([command, f"{__name__}:Wide", "--options", "{width: 7}"]) == 0
    assert "Conv2d" in capsys.readouterr().out
    assert main([command, f"{__name__}:Wide", "--options", "{wdth: 7}"]) == 2
    assert "takes no option 'wdth'" in capsys.readouterr().err
    assert main([command, f"{__name__}:Wide", "--options", "7"]) == 2
    assert "expected options such as {name: value}, not '7'" in capsys.readouterr().err
