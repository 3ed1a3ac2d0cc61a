"""``polylight.score`` is the engine of ``fit``, and a guest in the caller's process."""

import gc
import json
import logging
import random
import signal
import warnings

import numpy as np
import pytest
import tiny
import torch
from example_rows import same
from torch import nn

import polylight
from polylight import InputError
from polylight.ascent.engine import Engine
from polylight.cli import main
from polylight.run.manifest import read_manifest
from polylight.run.store import read_rows

TINY = {
    "image_size": 32,
    "max_steps": 12,
    "round_size": 4,
    "pool_size": 6,
    "reference_images": 24,
}
# Made once, as to make one takes random numbers.
EMBEDDER = tiny.embedder()


def score(net, neurons, **more):
    given = {"embedder": EMBEDDER, "images": 8, "device": "cpu", **TINY}
    return polylight.score(net, neurons, **given | more)


def rows(run):
    return {row.neuron: row for row in read_rows(run.run_dir)}


def assert_same_rows(one, other):
    assert one.keys() == other.keys()
    assert all(same(row, other[name]) for name, row in one.items())


def test_score_is_fit_to_the_bit(tmp_path, capsys):
    neurons = ["act3:0-3", "max(conv2:1,conv2:5)", "-conv3:2"]
    words = ["--model.subject", "tiny:subject", "--model.embedder", "tiny:embedder"]
    settings = {**TINY, "max_images": 8}
    words += [word for name, v in settings.items() for word in (f"--model.{name}", str(v))]
    words += ["--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "fit")]
    assert main(["fit", *words, "--data.neurons", json.dumps(neurons)]) == 0
    fitted = {row.neuron: row for row in read_rows(tmp_path / "fit")}
    capsys.readouterr()
    live = score(tiny.subject().train(), neurons)
    assert_same_rows(rows(live), fitted)
    named = score("tiny:subject", neurons, embedder="tiny:embedder")
    assert_same_rows(rows(named), fitted)
    assert live.manifest.settings == read_manifest(tmp_path / "fit").settings | {
        "reference": live.manifest.reference_hash
    }
    assert live.manifest.subject["source"] == "live"
    assert capsys.readouterr() == ("", "")


def everything(net):
    """What of the process and the network someone could notice a change of."""
    return {
        "values": {n: t.detach().clone() for n, t in net.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "modes": [m.training for m in net.modules()],
        "kinds": [(p.dtype, p.device, p.requires_grad, p.data_ptr()) for p in net.parameters()],
        "hooks": [list(m._forward_hooks.items()) for m in net.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "flags": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        ),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "filters": list(warnings.filters),
        "logging": {
            name: (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
            for name in ("", "polylight", "lightning", "lightning.pytorch", "py.warnings")
            for logger in [logging.getLogger(name)]
        },
    }


def assert_same_everything(before, after):
    for name, value in before.items():
        np.testing.assert_equal(_plain(after[name]), _plain(value), err_msg=name)


def _plain(value):
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def test_the_process_and_the_network_are_left_as_they_are():
    net, seen = tiny.subject().train(), []
    net.conv1.register_forward_hook(lambda *given: seen.append(given))
    net.conv2.weight.requires_grad_(False)
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    seen.clear()
    before = everything(net)
    run = score(net, "act3:0-1")
    assert_same_everything(before, everything(net))
    assert seen == []

    torch.manual_seed(11)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float64)
    try:
        before = everything(net)
        with torch.inference_mode(), torch.autocast("cpu"):
            other = score(net, "act3:0-1")
        assert_same_everything(before, everything(net))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    assert_same_rows(rows(other), rows(run))


def test_ctrl_c_is_raised_and_what_is_finished_is_kept(tmp_path, monkeypatch, caplog):
    net, turn, turns = tiny.subject(), Engine.turn, []

    def interrupted(self, *given):
        turns.append(self)
        # Of the run's engine, not of that which makes the reference.
        if self.judge.reference is not None and self.counters.neurons >= 2:
            raise KeyboardInterrupt
        return turn(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "turn", interrupted)
        before = everything(net)
        with pytest.raises(KeyboardInterrupt):
            score(net, "act3:0-5", run_dir=tmp_path / "run")
        assert_same_everything(before, everything(net))
    partial = polylight.open_run(tmp_path / "run")
    assert 2 <= len(partial) < 6
    assert partial.manifest.status == "interrupted"
    assert f"stopped after {len(partial)} of 6 neurons; polylight.open_run(" in caplog.text
    # Of a temporary run they stay as long as the process.
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "turn", interrupted)
        patch.setattr("tempfile.tempdir", str(tmp_path))
        kept = []
        patch.setattr("atexit.register", lambda *given, **_: kept.append(given[1]))
        with pytest.raises(KeyboardInterrupt):
            score(net, "act3:0-5")
    assert_same_rows(rows(polylight.open_run(kept[0])), rows(partial))
    whole = score(net, "act3:0-5", run_dir=tmp_path / "run")
    assert (len(whole), whole.manifest.status) == (6, "finished")
    assert_same_rows(rows(whole), rows(score(net, "act3:0-5")))


def test_a_run_goes_on_with_the_same_weights_and_no_others(tmp_path):
    net = tiny.subject()
    run = score(net, "act3:0", run_dir=tmp_path / "run")
    assert score(net.double().train(), "act3:0", run_dir=tmp_path / "run").neurons == run.neurons
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert (
        f"# subject is a network in memory, of weights {run.manifest.subject['weights_hash']}"
        in config
    )
    assert '"subject": "Sequential"' in config
    other = tiny.subject()
    other.conv1.bias.data += 1
    with pytest.raises(InputError, match=r"other settings .*weights_hash"):
        score(other, "act3:0", run_dir=tmp_path / "run")
    assert read_manifest(tmp_path / "run").status == "finished"


def test_a_temporary_run_goes_with_its_object_unless_it_is_saved(tmp_path):
    run = score(tiny.subject(), "act3:0", name="mine")
    place = run.run_dir
    assert place.is_dir()
    assert repr(run) == "<ScoredRun: 1 neuron of mine in a temporary directory>"
    assert run.save(tmp_path / "kept") == run.run_dir == tmp_path / "kept"
    assert repr(run) == f"<ScoredRun: 1 neuron of mine in {tmp_path / 'kept'}>"
    assert not place.exists()
    with pytest.raises(InputError, match=r"is there already; save the run in a directory of its"):
        run.save(tmp_path / "kept")
    again = score(tiny.subject(), "act3:0")
    place = again.run_dir
    assert_same_rows(rows(again), rows(run))
    del again
    gc.collect()
    assert not place.exists()
    assert len(polylight.open_run(tmp_path / "kept")) == 1


class Lost(nn.Module):
    """Has a layer that never runs, and one that returns no tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.spare, self.pair = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), Pair()

    def forward(self, x):
        return self.pair(self.conv(x))["sum"].mean((2, 3))


class Pair(nn.Module):
    def forward(self, x):
        return {"sum": x, "none": None}


def poisoned():
    net = tiny.subject()
    net.conv1.weight.data[0, 0, 0, 0] = torch.nan
    return net


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"net": [1]}, r"expected a torch.nn.Module or the name of a network, got a list"),
        ({"net": poisoned()}, r"conv1.weight is not finite"),
        ({"net": tiny.subject().to("meta")}, r"on the meta device"),
        ({"net": "tiny:subjekt"}, r"no function 'subjekt'; nearest: subject"),
        (
            {"net": "tiny:subject", "mean": 0.5, "std": 0.5},
            r"mean, std can be given for",
        ),
        ({"neurons": "act9:0"}, r"no layer 'act9'; nearest: act3"),
        ({"neurons": "act3:99"}, r"channels 0 to 23"),
        ({"neurons": []}, r"no neurons are asked for"),
        ({"neurons": 3}, r"expected neurons as text, such as 'layer4:0-15'"),
        ({"net": Lost(), "neurons": "spare:0"}, r"layer 'spare' of Lost does not run"),
        ({"net": Lost(), "neurons": "pair:0"}, r"'pair'"),
        ({"embedder": tiny.headless()}, r"cannot embed images|embed"),
        ({"embedder": poisoned()}, r"conv1.weight is not finite"),
        ({"max_step": 3}, r"no setting 'max_step'; nearest: max_steps"),
        ({"subject": "resnet18"}, r"no setting 'subject'"),
        (
            {"max_images": 3},
            r"called images in Python, .* write images=3",
        ),
        ({"max_steps": "many"}, r"cannot use a setting: .*max_steps"),
        ({"preset": "slow"}, r"preset 'slow' does not exist"),
        ({"max_clusters": 200}, r"max_clusters has to be from 1 to 127"),
        ({"images": 0}, r"images"),
        ({"device": "cuda:99"}, r"no device 'cuda:99' here"),
        ({"precision": "tf32"}, r"needs a CUDA device"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_error_before_any_work(given, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "turn", lambda *_: pytest.fail("work has begun"))
    given = {"net": tiny.subject(), "neurons": "act3:0", "run_dir": tmp_path / "run"} | given
    if isinstance(given["net"], nn.Module) and not next(given["net"].parameters()).is_meta:
        before = everything(given["net"])
    else:
        before = None
    with pytest.raises(InputError, match=message):
        score(**given)
    assert not (tmp_path / "run").exists()
    if before is not None:
        assert_same_everything(before, everything(given["net"]))


def test_a_notebook_shows_a_bar_and_nothing_else(monkeypatch, capsys):
    import sys
    from types import ModuleType, SimpleNamespace

    shown = []
    module = ModuleType("IPython.display")
    module.HTML = lambda text: text

    def display(page, display_id):
        shown.append(page)
        return SimpleNamespace(update=shown.append)

    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("polylight.callbacks.progress._SECONDS_BETWEEN_UPDATES", 0.0)
    score(tiny.subject(), "act3:0-1", seed=5)
    assert len(shown) > 2
    assert "2/2 neurons" in shown[-1]
    assert 'value="1.0000"' in shown[-1]
    count = len(shown)
    score(tiny.subject(), "act3:0-1", progress=False)
    assert len(shown) == count
    assert capsys.readouterr() == ("", "")
