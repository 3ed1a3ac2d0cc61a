import dataclasses
import json
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from torch import nn

from benchmarks import __main__ as command
from benchmarks import layer, process, scaling, small, sweep
from benchmarks.process import Sample, Watched
from polylight.ascent.presets import PRESETS
from polylight.networks import Model, load_model
from polylight.run.manifest import Manifest
from polylight.run.store import RunStore


def watched(pace=0.1, size=16, first=900.0, last=None, peak=1000.0, image_steps=None):
    """A run in which four neurons come through at a time, ``pace`` seconds a neuron."""
    parts = size // 4
    end = 100.0 + 4 * pace * (parts - 1)
    manifest = Manifest(
        device={"name": "cpu"},
        seed=0,
        settings={},
        neurons={"total": size, "finished": size, "failed": 0, "dead": 0},
        images=8 * size,
        image_steps=32 * size if image_steps is None else image_steps,
        slot_steps=640,
        seconds={"load": 1.0, "reference": 1.0, "ascent": 6.0, "cluster": 0.5, "total": 10.0},
    )
    return Watched(
        seconds=16.0,
        manifest=manifest,
        samples=[
            Sample(when=100.0, resident=first, peak=first),
            Sample(when=end, resident=first if last is None else last, peak=first),
            Sample(when=end + 1, resident=peak - 10, peak=peak),
        ],
        finished=[(100.0 + 4 * pace * i, 4) for i in range(parts)],
    )


def test_time_of_a_neuron_begins_with_the_first_that_is_through():
    run = watched(pace=0.25, size=32)
    assert run.seconds_per_neuron() == pytest.approx(0.25)
    uneven = dataclasses.replace(run, finished=[(0.0, 3), (1.0, 1), (2.0, 1), (6.0, 1), (10.0, 1)])
    # Of the first three nothing is known.
    assert uneven.seconds_per_neuron() == pytest.approx(10.0 / 4)
    assert uneven.seconds_per_neuron(0.0, 0.5) == pytest.approx(1.0)
    assert uneven.seconds_per_neuron(0.5) == pytest.approx(4.0)
    assert np.isnan(dataclasses.replace(run, finished=[(1.0, 8)]).seconds_per_neuron())


def test_memory_at_a_time_and_at_the_most():
    run = watched(first=900.0, last=950.0, peak=1000.0)
    assert (run.resident(99.0), run.resident(100.1), run.resident(101.3)) == (
        pytest.approx(float("nan"), nan_ok=True), 900.0, 950.0,
    )  # fmt: skip
    assert run.peak == 1000.0
    assert np.isnan(dataclasses.replace(run, samples=[]).peak)


def test_memory_of_a_process_is_what_the_system_says():
    before = process.read_memory(os.getpid())
    # Straight from the system: an allocator may hand out what the process holds already.
    held = mmap.mmap(-1, 256 << 20)
    for _ in range(256):
        held.write(bytes(1 << 20))
    after = process.read_memory(os.getpid())
    assert after.resident - before.resident == pytest.approx(256, abs=32)
    assert after.peak >= after.resident - 1
    assert after.when >= before.when
    held.close()
    assert process.read_memory(2**30) is None


def test_finished_neurons_are_told_from_the_files(tmp_path):
    store = RunStore(tmp_path)
    for index, names in enumerate((["a:2"], ["a:0", "a:1"])):
        part = store.append([make_row(name) for name in names])
        os.utime(part, (50.0 - index, 50.0 - index))
    store.close()
    assert process.read_finished(tmp_path) == [(49.0, 2), (50.0, 1)]


def test_run_that_fails_says_why(tmp_path, monkeypatch):
    start = subprocess.Popen

    def fail(command, **how):
        assert command[1:5] == ["-m", "benchmarks.process", str(tmp_path / "run.json"), "fit"]
        assert how["env"]["OMP_NUM_THREADS"] == "7"
        return start([sys.executable, "-c", "print('no such layer'); raise SystemExit(2)"], **how)

    monkeypatch.setattr(process.subprocess, "Popen", fail)
    with pytest.raises(RuntimeError, match=r"--max 3(.|\n)*no such layer"):
        process.fit(["--max", "3"], tmp_path / "run", {"OMP_NUM_THREADS": "7"})


def test_process_writes_its_memory_when_it_is_done(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(process, "main", lambda arguments: given.append(arguments) or 3)
    assert process._main(str(tmp_path / "memory.json"), "show", "run") == 3
    assert given == [("show", "run")]
    found = Sample(**json.loads((tmp_path / "memory.json").read_text()))
    assert 0 < found.resident <= found.peak + 1


def test_sizes_take_turns():
    assert list(scaling.turns({16: 3, 64: 2, 256: 1})) == [16, 64, 256, 16, 64, 16]


def test_time_is_held_against_the_middle_of_all_sizes():
    runs = {16: [watched(0.10)] * 3, 64: [watched(0.101, 64)], 256: [watched(0.12, 256)]}
    rows = scaling.time_rows(runs)
    assert [r.median for r in rows[:3]] == pytest.approx([100.0, 101.0, 120.0])
    assert [r.shape for r in rows[:3]] == ["16 neurons", "64 neurons", "256 neurons"]
    away = rows[3:6]
    assert [r.median for r in away] == pytest.approx([100 / 101, 0.0, 100 * 19 / 101])
    assert [r.passed for r in away] == [True, True, False]
    assert rows[6].median == pytest.approx(100 * 19 / 101)
    assert (rows[6].passed, rows[6].level, rows[6].shape) == (
        False,
        "headline",
        "16 to 256 neurons",
    )
    assert rows[7].median == pytest.approx(0.0, abs=1e-6)
    stages = {r.case: r.median for r in rows[8:] if r.shape == "256 neurons"}
    assert stages["scaling, stage ascent"] == pytest.approx(6000 / 256)
    # What no stage covers: 10 - 1 - 1 - 6 - 0.5 seconds.
    assert stages["scaling, stage other"] == pytest.approx(1500 / 256)
    assert {r.level for r in rows[8:]} == {"detail"}


def test_memory_is_held_against_the_fewest_neurons():
    runs = {64: [watched(size=64, peak=1060.0)], 16: [watched(peak=1000.0)]}
    runs[4096] = [watched(size=4096, last=930.0, peak=p) for p in (960.0, 970.0, 1200.0)]
    rows = scaling.memory_rows(runs)
    found = {(r.case.split(", ", 1)[1], r.shape): r for r in rows}
    least = "peak memory, away from that of 16 neurons"
    assert found["resident memory, peak of the process", "4,096 neurons"].median == 970.0
    assert found["resident memory, as the first neurons are through", "16 neurons"].median == 900.0
    assert found["resident memory, as the last ones are", "4,096 neurons"].median == 930.0
    assert found[least, "64 neurons"].median == pytest.approx(6.0)
    assert found[least, "64 neurons"].passed is False
    assert found[least, "4,096 neurons"].median == pytest.approx(3.0)
    assert found[least, "4,096 neurons"].passed is True
    assert [r.shape for r in rows if r.level == "headline"] == ["4,096 neurons"]


def test_memory_that_the_system_does_not_tell_is_a_failure():
    blind = dataclasses.replace(watched(), samples=[])
    rows = scaling.memory_rows({16: [blind], 64: [blind]})
    assert {r.status for r in rows} == {"FAILED: not finite"}


def test_whole_runs(tmp_path):
    store = RunStore(tmp_path)
    store.append([make_row(f"wide:{c}") for c in range(4)])
    assert scaling.is_whole(watched(size=4), tmp_path, 4)
    assert not scaling.is_whole(watched(size=8), tmp_path, 8)
    assert not scaling.is_whole(watched(size=4, image_steps=127), tmp_path, 4)
    store.close()


def fake_fit(rows_of):
    """Stands in for a run: writes rows, and was watched."""

    def fit(arguments, run_dir, environment=None):
        names = arguments[arguments.index("--data.neurons") + 1]
        size = 1 + int(json.loads(names)[0].split("-")[1])
        store = RunStore(run_dir)
        store.append(rows_of(size, run_dir))
        store.close()
        return watched(size=size)

    return fit


def test_scaling_compares_all_runs_before_it_speaks(monkeypatch):
    def rows_of(size, run_dir):
        return [make_row(f"wide:{c}") for c in range(size)]

    monkeypatch.setattr(scaling, "fit", fake_fit(rows_of))
    rows, config = scaling.run(quick=True)
    assert [r.passed for r in rows[:2]] == [True, True]
    assert {r.status for r in rows} == {"ok"}
    assert config["repeats"] == {"16": 1, "64": 1}

    def drifting(size, run_dir):
        rows = rows_of(size, run_dir)
        return [dataclasses.replace(r, score=0.5 if size == 64 else 0.4) for r in rows]

    monkeypatch.setattr(scaling, "fit", fake_fit(drifting))
    rows, _ = scaling.run(quick=True)
    assert [r.passed for r in rows] == [True, False]


def test_small_networks_are_wide_and_the_same_on_every_call():
    subject, other = load_model("benchmarks.small:subject"), load_model("benchmarks.small:subject")
    assert subject.net.get_submodule(scaling._LAYER).out_channels == max(scaling._REPEATS) == 4096
    assert subject.weights_hash == other.weights_hash
    assert subject.mean == subject.std == (0.5, 0.5, 0.5)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wide = subject.net(subject.preprocess(images))
        embedding = small.embedder()(subject.preprocess(images))
    assert wide.shape[:2] == (2, 4096)
    # Unit gain: what comes out is as large as what goes in.
    assert 0.2 < wide.std() < 5
    assert embedding.shape == (2, 10)


@pytest.mark.slow
def test_scaling_runs_as_a_user_would(tmp_path):
    environment = {"POLYLIGHT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = [*scaling._ARGUMENTS, "--data.neurons", '["wide:0-15"]']
    seen = process.fit(arguments, tmp_path / "run", environment)
    assert scaling.is_whole(seen, tmp_path / "run", 16)
    assert 0 < seen.seconds_per_neuron() < seen.seconds
    assert 100 < seen.resident(seen.finished[0][0]) <= seen.peak


def test_layer_says_where_the_time_went():
    rows = layer.layer_rows([watched(), watched()])
    found = {(r.case.removeprefix("layer, "), r.unit): r for r in rows}
    assert found["whole process", "neurons/minute"].median == pytest.approx(60.0)
    assert found["once loaded", "neurons/minute"].median == pytest.approx(120.0)
    assert found["ascent", "image-steps/s"].median == pytest.approx(512 / 6)
    assert found["ascent", "image-steps/neuron"].median == 32.0
    occupancy = found["occupancy of the pool, whole run", "%"]
    assert occupancy.median == pytest.approx(80.0)
    outside = found["time outside ascent steps once loaded", "%"]
    assert outside.median == pytest.approx(25.0)
    shares = {c: r for (c, u), r in found.items() if u == "% of the time"}
    assert {c: r.median for c, r in shares.items()} == pytest.approx(
        {
            "stage load": 10.0,
            "stage reference": 10.0,
            "stage ascent": 60.0,
            "stage cluster": 5.0,
            "stage other": 15.0,
        }
    )
    assert (shares["stage cluster"].passed, shares["stage ascent"].passed) == (False, None)
    assert found["process outside the run: imports, pictures, table", "s"].median == 6.0
    assert {r.shape for r in rows} == {"16 neurons, 128 images"}


def test_layer_needs_every_channel_once():
    rows = [make_row("blocks.1:0"), dataclasses.replace(make_dead(), neuron="blocks.1:1")]
    assert layer.is_complete(rows, 2)
    assert not layer.is_complete(rows, 3)
    assert not layer.is_complete([rows[0], rows[0]], 2)
    failed = dataclasses.replace(rows[1], status="failed", stop_reason="max_images")
    assert not layer.is_complete([rows[0], failed], 2)


def test_layer_compares_all_runs_before_it_speaks(monkeypatch):
    scores = iter([0.1, 0.1, 0.2])

    def fit(arguments, run_dir, environment=None):
        score = next(scores)
        store = RunStore(run_dir)
        store.append(
            [dataclasses.replace(make_row(f"blocks.1:{c}"), score=score) for c in range(24)]
        )
        store.close()
        return watched()

    monkeypatch.setattr(layer, "fit", fit)
    rows, config = layer.run(quick=False)
    assert [r.passed for r in rows] == [True, False]
    assert config["arguments"][-1] == '["blocks.1:*"]'


def tiny_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    net.append(nn.Conv2d(8, 6, 3, 2, 1))
    net.eval().requires_grad_(False)
    return Model("tiny", net, (0.5,) * 3, (0.2,) * 3, 32, "0" * 32, "factory")


def test_sweep_measures_each_setting_behind_its_gates():
    settings = [
        sweep.Setting(axis="pool size", layer="3", pool_size=4, image_size=32),
        sweep.Setting(axis="image size", layer="0", pool_size=8, image_size=48),
    ]
    rows = sweep.sweep(tiny_model(), settings, steps=4, repeats=2, preset=PRESETS["fast"])
    assert [r.status for r in rows] == ["ok"] * 10
    assert [r.passed for r in rows] == [True, True, None, None, None] * 2
    sides = [32, 48]
    assert {r.shape for r in rows[:5]} == {f"[4, 3, {sides[0]}, {sides[0]}]"}
    assert {r.shape for r in rows[5:]} == {f"[8, 3, {sides[1]}, {sides[1]}]"}
    assert rows[2].case == "pool size, ascent to 3"
    assert rows[5].level == "detail"
    assert [r.unit for r in rows[2:5]] == ["image-steps/s"] * 2 + [f"of the {sweep._BARE}"]


def test_sweep_covers_what_it_says():
    axes = {axis: [s for s in sweep.SETTINGS if s.axis == axis] for axis in ("pool size", "depth")}
    assert [s.pool_size for s in axes["pool size"]] == [4, 8, 16, 32]
    assert [s.layer for s in axes["depth"]] == [f"blocks.{b}" for b in range(1, 7)]
    assert sweep.sized(PRESETS["lucid"], 64).parametrization.size == 64
    assert sweep.sized(PRESETS["lucid"], 64).ascent == PRESETS["lucid"].ascent


def test_command_starts_them():
    assert {"layer", "scaling", "sweep"} <= set(command.BENCHMARKS)
