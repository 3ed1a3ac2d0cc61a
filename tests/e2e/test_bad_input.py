"""What cannot be used is refused before any work, in one message, and nothing is written."""

import errno
import json
import re

import pytest
import torch
from safetensors.torch import save_file
from test_fit import TINY, fit
from tiny import subject

from polylight.cli import main
from polylight.errors import InputError
from polylight.run.manifest import read_manifest


class Payload:
    """A pickle that would run code."""

    def __reduce__(self):
        return print, ("ran",)


def refused(capsys, run, *args, status=2):
    """Run `polylight`, expect a refusal, and give its message."""
    before = sorted(run.rglob("*")) if run.exists() else None
    assert main(list(args)) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("polylight: error: ")
    assert captured.err.count("\n") == 1
    assert (sorted(run.rglob("*")) if run.exists() else None) == before
    return captured.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model.subject": "efficientnet_light0"}, "nearest: .*efficientnet_lite0"),
        ({"--model.embedder": "resnet19"}, "nearest: .*resnet1[08]"),
        ({"--model.subject": "no_such_module:net"}, "no_such_module"),
        ({"--model.subject": "tiny:nothing"}, "nothing"),
        (
            {"--data.neurons": ["act4:0"]},
            "'act4'; nearest: act[123].*polylight layers tiny:subject",
        ),
        ({"--data.neurons": ["act3:24"]}, "channel 24, but layer 'act3' has channels 0 to 23"),
        ({"--data.neurons": ["act3"]}, "no channel is given; 'act3:.' means all"),
        ({"--data.neurons": ["mux(act3:1,act3:2)"]}, "'mux'.*nearest: max"),
        ({"--data.neurons": ["max(act3:1"]}, "is no neuron"),
        ({"--data.neurons": []}, "no neurons are asked for"),
        ({"--data.shard": "3/4", "--data.neurons": ["act3:0"]}, "shard 3/4 is empty"),
        ({"--data.shard": "4/4"}, "0 <= i < n"),
        ({"--model.preset": "quick"}, "preset 'quick' does not exist; nearest: "),
        ({"--model.image_size": "7"}, "image_size has to be at least 8"),
        ({"--model.sd": "0"}, "sd of the first latents has to be > 0, not 0.0"),
        ({"--model.max_steps": "0"}, "max_steps has to be at least 1"),
        ({"--model.explore": "1.5"}, "explore is a part of the steps"),
        ({"--model.strength": "0"}, "strength is a part of the median gain"),
        ({"--model.embedder": "tiny:headless"}, "'tiny:headless' cannot embed images"),
        ({"--model.max_clusters": "200"}, "max_clusters has to be from 1 to 127"),
        ({"--model.clustering": "cuml"}, "backend 'cuml' needs"),
        ({"--model.pool_size": "0"}, "pool_size have to be at least 1"),
        ({"--model.precision": "tf32"}, "needs a CUDA device"),
        ({"--trainer.precision": "bf16-mixed"}, "set --model.precision, which is the subject's"),
        ({"--model.reference_images": "1"}, "needs at least 2 images, not 1"),
        (
            {"--model.subject": "resnet18", "--model.subject_weights": "nowhere.safetensors"},
            "nowhere.safetensors",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused(tmp_path, capsys, changes, message):
    run = tmp_path / "run"
    given = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--data.neurons": ["act3:0-1"]}
    given |= changes
    given["--data.neurons"] = json.dumps(given["--data.neurons"])
    arguments = [word for pair in given.items() for word in pair]
    error = refused(capsys, run, "fit", "--run_dir", str(run), *arguments)
    assert not run.exists()
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("layer", "size", "message"),
    [("features.30", "8", "image"), ("features.40", "64", "nearest: features")],
)
def test_images_too_small_for_a_layer_are_refused(tmp_path, capsys, layer, size, message):
    run = tmp_path / "run"
    arguments = [*TINY, "--model.subject", "vgg16", "--model.subject_weights", "random"]
    arguments += ["--model.image_size", size, "--data.neurons", f'["{layer}:0"]']
    error = refused(capsys, run, "fit", "--run_dir", str(run), *arguments)
    assert message in error


def _state():
    return {name: value.clone() for name, value in subject().state_dict().items()}


def _missing(path):
    state = _state()
    del state["conv2.weight"]
    save_file(state, path)


def _unsafe(path):
    torch.save({"conv1.weight": Payload()}, path)


def _not_a_state(path):
    torch.save([1, 2, 3], path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (_missing, "net.safetensors", "conv2.weight"),
        (_unsafe, "net.pt", "net.pt"),
        (_not_a_state, "net.pt", "net.pt"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, capsys, write, name, message):
    run, path = tmp_path / "run", tmp_path / name
    write(path)
    arguments = [*TINY, "--model.subject_weights", str(path), "--data.neurons", '["act3:0"]']
    error = refused(capsys, run, "fit", "--run_dir", str(run), *arguments)
    assert message in error
    assert "ran" not in capsys.readouterr().out


def test_a_checkpoint_that_fits_is_scored(tmp_path):
    save_file(_state(), tmp_path / "net.safetensors")
    weights = ["--model.subject_weights", str(tmp_path / "net.safetensors")]
    assert fit(tmp_path / "run", ["act3:0"], *weights) == 0


def test_the_directory_of_another_run_is_left_alone(tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(run, ["act3:0"]) == 0
    capsys.readouterr()
    contents = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    arguments = ["--run_dir", str(run), *TINY, "--data.neurons", '["act3:0"]']
    error = refused(capsys, run, "fit", *arguments, "--model.max_steps", "13")
    assert "max_steps" in error
    assert "12" in error
    assert "13" in error
    error = refused(capsys, run, "fit", *arguments, "--seed_everything", "5")
    assert "seed" in error
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == contents


def test_a_directory_that_is_no_run_is_left_alone(tmp_path, capsys):
    run = tmp_path / "thesis"
    run.mkdir()
    (run / "chapter1.tex").write_text("important")
    arguments = ["--run_dir", str(run), *TINY, "--data.neurons", '["act3:0"]']
    assert "holds no run" in refused(capsys, run, "fit", *arguments)


@pytest.mark.parametrize("name", ["x" * 300, "/proc/none", "/dev/null/run"])
def test_a_directory_that_cannot_be_is_refused(tmp_path, capsys, name):
    arguments = ["--run_dir", str(tmp_path / name), *TINY, "--data.neurons", '["act3:0"]']
    error = refused(capsys, tmp_path, "fit", *arguments)
    assert re.search(rf"{name} .*choose another --run_dir", error)


def test_what_is_refused_late_leaves_its_directory_to_the_corrected_command(
    tmp_path, capsys, monkeypatch
):
    def refuse(*_):
        raise InputError("the pool cannot be")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("polylight.module.PolysemanticityModule._make_pool", refuse)
        assert fit(run, ["act3:0"]) == 2
    assert "the pool cannot be" in capsys.readouterr().err
    assert [path.name for path in run.rglob("*") if path.is_file()] == [".rank-00000.lock"]
    assert fit(run, ["act3:0"], "--model.max_steps", "8") == 0
    capsys.readouterr()
    # Rows are never given up.
    with monkeypatch.context() as patch:
        patch.setattr("polylight.module.PolysemanticityModule._make_pool", refuse)
        assert fit(run, ["act3:0-1"], "--model.max_steps", "8") == 2
    assert read_manifest(run).neurons["finished"] == 1


def test_a_callback_that_cannot_run_is_refused_in_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(run, ["act3:0"], "--trainer.callbacks+=DeviceStatsMonitor") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("polylight: error: the trainer cannot run as its settings ask: ")
    assert "DeviceStatsMonitor" in error
    assert fit(run, ["act3:0"]) == 0


@pytest.mark.parametrize(
    "what", ["polylight.run.store.write_part", "polylight.run.atomic.os.fsync"]
)
def test_a_full_disk_is_said_in_one_line_and_the_same_command_goes_on(
    tmp_path, capsys, monkeypatch, what
):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(what, fail)
        assert fit(run, ["act3:0"]) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("polylight: error: ")
    assert "No space left on device" in error
    assert fit(run, ["act3:0"]) == 0


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    run = tmp_path / "file" / "run"
    arguments = ["--run_dir", str(run), *TINY, "--data.neurons", '["act3:0"]']
    assert "cannot" in refused(capsys, tmp_path, "fit", *arguments)


def test_commands_that_do_not_exist_are_refused(tmp_path, capsys):
    assert "no command 'fot'; nearest: fit" in refused(capsys, tmp_path, "fot")
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "polylight fit" not in capsys.readouterr().err


def test_show_and_layers_refuse_what_they_cannot_read(tmp_path, capsys):
    assert "directory" in refused(capsys, tmp_path, "show", str(tmp_path / "nowhere"))
    assert "nearest" in refused(capsys, tmp_path, "layers", "resnet19")


def test_layers_are_listed(capsys):
    assert main(["layers", "tiny:subject", "--image_size", "32"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("conv1", "act3", "fc", "Conv2d", "8x8"))
    assert max(map(len, listed.splitlines())) <= 80
