import dataclasses
import json
import math
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.common import Timed
from benchmarks.machine import ROOT
from benchmarks.peer_workers import crew, environment, pipe, race, session
from benchmarks.peer_workers import polylight as ours
from benchmarks.peers import Contender
from polylight.networks import Model, load_model

CPU = torch.device("cpu")
REQUIREMENTS = ROOT / "benchmarks" / "peer_workers" / "requirements"

TOY = """
import os, sys
from benchmarks.peer_workers.pipe import serve
def fail(): raise KeyError("no layer 'blocks_9'")
def shout(): print("step 1 loss 0.5"); os.write(1, b"from below"); return "done"
serve({"add": lambda a, b: a + b, "fail": fail, "shout": shout})
"""


def start(code, tmp_path, **more):
    return pipe.Worker([sys.executable, "-c", code], {}, tmp_path / "log", **more)


def test_arrays_travel_bit_for_bit():
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    array[0, 0, 0, :2] = np.nan, -0.0
    found = pipe.unpack(json.loads(json.dumps(pipe.pack(array.transpose(0, 3, 1, 2)))))
    assert found.shape == (2, 5, 3, 4)
    assert found.tobytes() == np.ascontiguousarray(array.transpose(0, 3, 1, 2)).tobytes()


def test_worker_answers_fails_and_goes_on(tmp_path):
    worker = start(TOY, tmp_path)
    try:
        assert worker.ask("add", a=2, b=3) == 5
        with pytest.raises(RuntimeError, match=r"KeyError: .*no layer 'blocks_9'"):
            worker.ask("fail")
        assert worker.ask("shout") == "done"
        assert worker.ask("add", a=[1], b=["x" * 100_000]) == [1, "x" * 100_000]
    finally:
        worker.close()
    log = (tmp_path / "log").read_text()
    assert "Traceback" in log
    assert "step 1 loss 0.5" in log
    assert "from below" in log


def test_worker_that_ends_says_why(tmp_path):
    worker = start("import sys; sys.exit('no module named kornia')", tmp_path)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="status 1 in 'add': no module named kornia"):
            worker.ask("add", a=1, b=2)
    worker.close()


def test_worker_that_hangs_is_ended(tmp_path):
    worker = start("import time; time.sleep(60)", tmp_path, patience=0.2)
    with pytest.raises(RuntimeError, match=r"no reply to 'add' in 0\.2 s"):
        worker.ask("add", a=1, b=2)
    worker.close()


def test_environment_sees_the_packages_of_this_one(tmp_path, monkeypatch):
    commands = []
    packages = tmp_path / "site-packages"
    packages.mkdir()

    def run(command, **more):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"{packages}\n", stderr="")

    monkeypatch.setattr(environment.subprocess, "run", run)
    python = environment.create(tmp_path)
    environment.install(python, "lucent")
    assert commands[0][:4] == [sys.executable, "-m", "uv", "venv"]
    assert commands[0][-1] == str(tmp_path)
    assert commands[2][3:6] == ["pip", "install", "--python"]
    assert "--no-deps" in commands[2]
    assert commands[2][-1] == str(REQUIREMENTS / "lucent.txt")
    link = (packages / "packages_of_polylight.pth").read_text()
    sitedirs = []
    monkeypatch.setattr("site.addsitedir", sitedirs.append)
    exec(link)
    assert sitedirs == [environment.sysconfig.get_path("purelib")]


def test_environment_that_cannot_be_made_says_why(monkeypatch):
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="hint\nNo module named uv\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(RuntimeError, match="uv venv --allow-existing failed: No module named uv"):
        environment.create()


def test_every_peer_has_a_worker_and_pins_that_its_name_tells():
    assert {p.stem for p in REQUIREMENTS.glob("*.txt")} == set(crew.NAMES) - {crew.OURS}
    for peer, name in crew.NAMES.items():
        assert (REQUIREMENTS.parent / f"{peer}.py").is_file()
        if peer == crew.OURS:
            continue
        lines = (REQUIREMENTS / f"{peer}.txt").read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in pins)
        assert pins[0].split("==")[1] == name.split()[-1]


class Fake:
    """A worker whose replies are given; it keeps what it was asked."""

    def __init__(self, **replies):
        self.replies, self.asked, self.closed = replies, [], False

    def ask(self, task, **arguments):
        self.asked.append((task, arguments))
        reply = self.replies[task]
        if isinstance(reply, Exception):
            raise reply
        return reply(**arguments) if callable(reply) else reply

    def close(self):
        self.closed = True


class Crew(dict):
    """Stands in for the workers."""

    def __init__(self, **workers):
        super().__init__(workers)
        self.failures = {}

    def __getitem__(self, peer):
        if peer in self.failures:
            raise RuntimeError(self.failures[peer])
        return super().__getitem__(peer)


def test_crew_goes_on_without_those_that_fail(monkeypatch):
    threads = torch.get_num_threads()
    started, installed = {}, []

    def launch(command, variables, log):
        peer = command[-1].rsplit(".", 1)[-1]
        replies = {"horama": RuntimeError("no module named einops"), "dreamlens": threads + 1}
        started[peer] = Fake(threads=replies.get(peer, threads))
        started[peer].variables = variables
        return started[peer]

    def install(python, peer):
        installed.append(peer)
        if peer == "lucent":
            raise RuntimeError("uv pip install failed: no network")

    monkeypatch.setattr(environment, "create", lambda: "python")
    monkeypatch.setattr(environment, "install", install)
    monkeypatch.setattr(crew, "Worker", launch)
    with ExitStack() as stack:
        found = crew.Workers("cpu", stack)
        assert found["polylight"] is started["polylight"]
        assert found["torch_dreams"] is started["torch_dreams"]
        for peer, message in (
            ("lucent", "no network"),
            ("horama", "einops"),
            ("dreamlens", f"works with {threads + 1} threads, not with {threads}"),
        ):
            with pytest.raises(RuntimeError, match=message):
                found[peer]
    assert "lucent" not in started
    assert installed == ["dreamlens", "lucent", "torch_dreams", "horama"]
    assert all(worker.closed for worker in started.values())
    assert started["polylight"].variables == {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_contenders_are_told_apart():
    for device in ("cpu", "cuda"):
        entered = peers.contenders(device)
        assert len({c.name for c in entered}) == len(entered)
        assert peers._LIMITS.keys() <= {c.kind for c in entered}
        # Turns of a pool are whole draws of four steps, in the quick try too.
        assert all(c.steps % 8 == 0 for c in entered if c.peer == crew.OURS)
    assert Contender("lucent", 4, True).name == ("Lucent 0.1.8, weights frozen by hand, batch of 4")
    assert Contender("dreamlens", 1).name == "DreamLens 0.1.1, as shipped, one image"
    assert Contender("polylight", 8).name == "polylight, pool of 8"
    assert Contender("dreamlens", 4).preparation["channels"] == [0, 1, 2, 3]
    assert Contender("horama", 3).preparation["channels"] == [0, 0, 0]
    steps = [Contender("lucent", n).steps for n in (1, 4, 16)]
    assert steps == [32, 16, 8]


def test_gate_compares_the_first_steps_with_all_of_them():
    reached = {1: 0.0}

    def climb(steps):
        reached["now"] = steps

    peer = Fake(prepare=[5, 6], climb=climb, images=lambda: reached["now"])

    def judge(images, channels):
        assert channels == [5, 6]
        return [1.0 * images, -1.0 * images]

    workers = Crew(polylight=Fake(judge=judge), lucent=peer)
    assert peers.rises(workers, Contender("lucent", 2), 9) == [1.0, 0.0]
    (red,) = peers.gates(workers, [Contender("lucent", 2)], "cpu", 9)
    assert red.median == 0.5
    assert red.passed is False
    assert workers.failures == {"lucent": "its gate is red"}
    climbed = [arguments["steps"] for task, arguments in peer.asked if task == "climb"]
    assert climbed == [1, 9, 1, 9]


def test_gate_of_a_peer_that_fails():
    workers = Crew(polylight=Fake(), horama=Fake(prepare=RuntimeError("no such layer")))
    (failed,) = peers.gates(workers, [Contender("horama", 6)], "cpu", 9)
    assert failed.status == "FAILED: no such layer"
    assert failed.passed is False
    assert workers.failures == {"horama": "no such layer"}


def test_fastest_of_a_kind():
    one, four, frozen = (Contender("lucent", *more) for more in ((1,), (4,), (4, True)))
    taken = {
        one: Timed([3.0, 3.0, 9.0]),
        four: Timed([4.0, 4.0, 4.0]),
        frozen: Timed(failure="no memory"),
    }
    assert peers.fastest(taken, one.kind) == four
    assert peers.fastest(taken, frozen.kind) == frozen
    taken[four] = Timed(failure="no memory")
    assert peers.fastest(taken, one.kind) == one


def test_throughput_compares_the_fastest(monkeypatch, capsys):
    # A clock that only climbing moves: a step costs polylight 1 s, Lucent 2 s a batch.
    clock = [0.0]
    monkeypatch.setattr("benchmarks.common.time.perf_counter", lambda: clock[0])

    def climber(seconds):
        batch = [0]

        def prepare(channels, renderer, frozen):
            assert renderer == "equal"
            batch[0] = len(channels)

        def climb(steps):
            clock[0] += seconds * steps
            return {"image_steps": batch[0] * steps, "seconds": 0.0}

        return Fake(prepare=prepare, climb=climb)

    workers = Crew(
        polylight=climber(1.0), lucent=climber(2.0), dreamlens=Fake(prepare=RuntimeError("killed"))
    )
    workers.failures["horama"] = "no network"
    entered = [
        Contender("polylight", 8),
        Contender("polylight", 16),
        Contender("lucent", 1),
        Contender("lucent", 16),
        Contender("dreamlens", 4),
        Contender("horama", 6),
    ]
    rows = peers.throughput(workers, entered, "cpu", 4, 2)
    speeds = {r.provider: r for r in rows if r.unit == "image-steps/s"}
    assert [r.median for r in speeds.values()] == [8.0, 16.0, 0.5, 8.0, None, None]
    assert {r.n for r in rows} == {0, 2}
    assert [r.status for r in rows].count("FAILED: RuntimeError: killed") == 2
    assert [r.status for r in rows].count("FAILED: no network") == 2
    lucent, dreamlens, horama = (r for r in rows if r.unit == "times as fast")
    assert lucent.median == 2.0
    assert lucent.provider == "polylight, pool of 16"
    assert lucent.case.endswith("against Lucent 0.1.8, as shipped, batch of 16")
    assert (lucent.target, lucent.passed, lucent.level) == (">= 8", False, "headline")
    assert (dreamlens.target, dreamlens.passed) == (">= 5", False)
    assert (horama.target, horama.level) == ("", "table")
    assert "killed" in capsys.readouterr().err


# Two rounds of two slots, four steps between looks; seconds of a step: 0.5 and 1.
ROUNDS = [
    race.Round([7, 9], 0.5, [[4, 4], [8, 8], [12, 8]], [[0.1, 1.0], [0.6, 3.0], [0.9, 3.0]]),
    race.Round([9, 7], 1.0, [[4, 4], [8, 8]], [[0.0, 0.5], [5.0, 0.2]]),
]


def test_images_that_arrive_pay_for_those_that_do_not():
    # Channel 7 at 0.6: the first image at 8 steps of 0.25 s, the second stops at 8 of 0.5 s.
    assert race.arrivals(ROUNDS, 7, 0.6) == race.Arrivals(8 * 0.25 + 8 * 0.5, 1, 2)
    # At 0.5 both arrive, the second at its first look, whatever it does later.
    assert race.arrivals(ROUNDS, 7, 0.5) == race.Arrivals((8 * 0.25 + 4 * 0.5) / 2, 2, 2)
    assert race.arrivals(ROUNDS, 9, 2.0) == race.Arrivals((8 * 0.25 + 8 * 0.5) / 2, 2, 2)
    assert race.arrivals(ROUNDS, 7, 1.0) == race.Arrivals(math.inf, 0, 2)
    assert race.last_activation(ROUNDS, 7) == pytest.approx(0.55)


def test_race_is_run_in_turns():
    order = []

    def climb(steps):
        order.append(("lucent", steps))
        return {"image_steps": 8.0, "seconds": 3.0}

    def follow(channels, first, stride):
        order.append((channels, first))
        return {"seconds": 0.5, "steps": [[4] * 3], "activation": [[1.0] * 3]}

    lucent = Fake(prepare=[1], climb=climb, images="picture")
    judge = Fake(judge=lambda images, channels: [channels[0] / 10], follow=follow)
    singles, rounds = race.race(Crew(lucent=lucent, polylight=judge), [2, 5], 8, 3)
    pools = [([2, 5, 2], 0), ([2, 5, 2], 3)]
    assert order == [("lucent", 8), ("lucent", 8), pools[0], ("lucent", 8), ("lucent", 8), pools[1]]
    assert singles["defaults"] == [race.Single(3.0, 0.2), race.Single(3.0, 0.5)]
    assert [r.channels for r in rounds] == [[2, 5, 2]] * 2
    prepared = [arguments for task, arguments in lucent.asked if task == "prepare"]
    assert [p["renderer"] for p in prepared] == ["defaults", "to_scale"] * 2
    assert not any(p["frozen"] for p in prepared)


def test_race_is_summed_up():
    singles = {
        "defaults": [race.Single(60.0, 0.6), race.Single(30.0, 2.0)],
        "to_scale": [race.Single(60.0, 1.0), race.Single(30.0, 2.0)],
    }
    rows = race.race_rows(singles, ROUNDS, [7, 9], "CPU")
    lucent, pool, ratio, share, activation, last = rows[:6]
    assert lucent.median == 45.0
    assert pool.median == 4.5
    assert ratio.median == 10.0
    assert (ratio.target, ratio.passed, ratio.level) == (">= 10", True, "headline")
    assert share.median == 75.0
    assert activation.median == pytest.approx(1.3)
    assert last.median == pytest.approx((0.55 + 4.0) / 2)
    # One channel that no image reaches: its ratio is 0, and there is no time.
    assert rows[7].status == "FAILED: no image of 1 of the channels got there"
    assert rows[8].median == 5.0
    assert (rows[8].target, rows[8].level) == ("", "table")
    assert rows[9].median == 50.0


def test_race_that_failed():
    rows = race.race_rows({}, [], [7, 9], "CPU", failure="no network")
    assert {r.status for r in rows} == {"FAILED: no network"}
    assert [r.passed for r in rows if r.target] == [False]


def tiny_model(name="tiny"):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval().requires_grad_(False)
    return Model(name, net, (0.5,) * 3, (0.2,) * 3, 32, "0" * 32, "factory")


def test_session_gives_each_ascent_a_fresh_network_and_the_same_draws(monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(session, "load_model", lambda name: model)
    seen = []

    def render(model, channels, steps, device):
        seen.append((model.net, [p.requires_grad for p in model.net.parameters()]))
        model.net.register_forward_hook(lambda *args: None)
        images = torch.rand(len(channels), 3, session.SIZE, session.SIZE, requires_grad=True)
        return images * float(np.random.random())  # noqa: NPY002

    served = session.Session({"equal": render, "odd": lambda *args: torch.zeros(1, 3, 4, 4)}, CPU)
    found = []
    for frozen in (False, True):
        assert served.prepare([3, 5], "equal", frozen) == [3, 5]
        reply = served.climb(7)
        assert reply["image_steps"] == 14.0
        assert reply["seconds"] > 0
        found.append(pipe.unpack(served.images()))
    np.testing.assert_array_equal(*found)
    assert [set(grad) for _, grad in seen] == [{True}, {False}]
    assert len({id(net) for net, _ in seen} | {id(model.net)}) == 3
    served.prepare([3], "odd", False)
    with pytest.raises(RuntimeError, match=r"images of shape \[1, 3, 4, 4\]"):
        served.climb(1)


@pytest.fixture(scope="module")
def polylight_session():
    return ours.Session(CPU)


def test_judge_reads_what_the_whole_network_returns(polylight_session):
    images = torch.rand(
        3, 3, session.SIZE, session.SIZE, generator=torch.Generator().manual_seed(1)
    )
    found = polylight_session.judge(pipe.pack(images.numpy()), [0, 28, 84])
    model, caught = load_model(session.MODEL), []
    net = model.net.double()
    layer = net.get_submodule(session.LAYER)
    layer.register_forward_hook(lambda module, given, output: caught.append(output))
    net(model.preprocess(images.double()))
    expected = caught[0].mean((2, 3))[range(3), [0, 28, 84]]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_pool_is_prepared_and_climbs(polylight_session):
    assert polylight_session.prepare([0] * 8, "equal", True) == [0] * 4 + [1] * 4
    before = pipe.unpack(polylight_session.images())
    assert polylight_session.climb(4)["image_steps"] == 32.0
    assert np.abs(pipe.unpack(polylight_session.images()) - before).max() > 0.01
    polylight_session.prepare([0] * 8, "equal", True)
    np.testing.assert_array_equal(pipe.unpack(polylight_session.images()), before)


def test_pool_is_followed_until_all_have_stopped(polylight_session, monkeypatch):
    preset = ours._PRESET
    short = dataclasses.replace(preset.ascent, max_steps=6, patience=0)
    monkeypatch.setattr(ours, "_PRESET", dataclasses.replace(preset, ascent=short))
    found = polylight_session.follow([28, 0], first=0, stride=2)
    assert found["steps"] == [[2, 2], [4, 4], [6, 6]]
    assert found["seconds"] > 0
    first, last = found["activation"][0], found["activation"][-1]
    assert all(b > a for a, b in zip(first, last, strict=True))
    again = polylight_session.follow([28, 0], first=0, stride=3)
    assert again["steps"] == [[3, 3], [6, 6]]
    assert again["activation"][-1] == last
    other = polylight_session.follow([28, 0], first=2, stride=3)
    assert other["activation"][-1] != last


def test_run_puts_it_together(monkeypatch):
    closed = []

    class Stub(Crew):
        def __init__(self, device, stack):
            super().__init__()
            self.failures = dict.fromkeys(crew.NAMES, "no network")
            stack.callback(lambda: closed.append(device))

    monkeypatch.setattr(peers, "Workers", Stub)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows, config = peers.run(quick=True)
    assert closed == ["cpu"]
    assert {r.status for r in rows} == {"FAILED: no network"}
    assert sum(r.case.startswith("gate:") for r in rows) == len(crew.NAMES)
    assert sum(r.target != "" and not r.case.startswith("gate:") for r in rows) == 4
    assert json.loads(json.dumps(config)) == config
