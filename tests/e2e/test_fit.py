import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from example_rows import same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polylight.callbacks.scoring import ScoreNeurons
from polylight.cli import main
from polylight.embedding.reference import Reference
from polylight.module import METHOD
from polylight.run.manifest import read_manifest
from polylight.run.png import decode_png
from polylight.run.store import read_rows

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    if path.stem not in ("validate", "calibrate")  # of another command
]
TINY = [
    *("--model.subject", "tiny:subject"),
    *("--model.embedder", "tiny:embedder"),
    *("--model.image_size", "32"),
    *("--model.max_steps", "12"),
    *("--model.max_images", "8"),
    *("--model.round_size", "4"),
    *("--model.pool_size", "6"),
    *("--model.reference_images", "24"),
    *("--trainer.accelerator", "cpu"),
]


def fit(run_dir, neurons, *more, tiny=TINY):
    neurons = json.dumps(neurons)
    return main(["fit", "--run_dir", str(run_dir), "--data.neurons", neurons, *tiny, *more])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_runs(config, tmp_path, capsys):
    chosen = yaml.safe_load(config.read_text())["data"]["neurons"]
    layers = {"layer4:*": "conv2:*", "classifier:281": "fc:9"}
    neurons = [layers.get(n, n.replace("blocks.4:77", "conv2:7")) for n in chosen]
    neurons = [n.replace("blocks.4:", "conv2:") for n in neurons]
    where = ["--config", str(config), "--run_dir", str(tmp_path / "run")]
    few = ["--model.min_images", "null"]
    assert main(["fit", *where, *TINY, *few, "--data.neurons", json.dumps(neurons)]) == 0
    rows = read_rows(tmp_path / "run")
    # In twelve steps not every neuron of a random network is driven beyond what noise does.
    scores = [row.score for row in rows if row.status == "ok"]
    assert 2 * len(scores) > len(rows)
    assert all(0 <= score <= 1 for score in scores)
    assert all(row.status == "dead" for row in rows if row.score is None)
    assert all(row.num_images == 8 == len(row.image) for row in rows)
    assert read_manifest(tmp_path / "run").status == "finished"
    assert rows[0].neuron in capsys.readouterr().out


def test_configurations_parse_with_their_own_networks(capsys):
    for config in CONFIGS:
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", str(config), "--run_dir", "unused", "--print_config"])
        assert ended.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["run_dir"] == "unused"


def test_a_run_leaves_everything_behind(tmp_path, capsys):
    run = tmp_path / "run"
    assert fit(run, ["act3:0-3", "max(conv2:1,conv2:4)"], "--tensorboard.every", "0") == 0
    rows = {row.neuron: row for row in read_rows(run)}
    assert list(rows) != []
    assert set(rows) == {*(f"act3:{c}" for c in range(4)), "max(conv2:1,conv2:4)"}
    assert rows["act3:2"].channel == 2
    assert rows["max(conv2:1,conv2:4)"].channel is None
    for row in rows.values():
        assert row.k == row.cluster_weight.size
        assert row.embedding.shape == (8, 20)
        assert decode_png(row.image[0]).shape == (32, 32, 3)
        assert row.stop_reason == "max_images"
        assert row.steps == 8 * 12
        assert 0 <= row.score_low <= row.score <= row.score_high <= 1
        if (row.label >= 0).sum() >= 4:
            assert 0 < row.p_value <= row.q_value <= 1
        else:
            assert row.p_value is row.q_value is None
        assert row.component.max() == (1 if "max" in row.neuron else 0)
    manifest = read_manifest(run)
    assert manifest.neurons == {"total": 5, "finished": 5, "failed": 0, "dead": 0}
    # Each of the two parts of the composite is probed by three ascents.
    assert manifest.image_steps == 5 * 8 * 12 + 2 * 3 * 12
    assert manifest.image_steps_per_second > 0
    assert 0.5 < manifest.occupancy <= 1
    assert manifest.seconds["ascent"] > 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["max_steps"] == 12
    assert (run / "neurons.png").stat().st_size > 1000
    assert Reference.load(run / "reference.safetensors").key == manifest.reference_hash

    board = EventAccumulator(str(run / "tensorboard"), {"images": 0, "histograms": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    assert {
        "neurons/finished",
        "images/finished",
        "pool/occupancy",
        "pool/image_steps_per_second",
        "pool/mean_activation",
    } <= set(tags["scalars"])
    assert board.Scalars("neurons/finished")[-1].value == 5
    assert board.Scalars("images/finished")[-1].value == manifest.images
    assert {"score/act3", "score/conv2"} <= set(tags["histograms"])
    assert {f"neuron/{name}" for name in rows} == set(tags["images"])
    assert board.Images("neuron/act3:0")[0].encoded_image_string.startswith(b"\x89PNG")


def test_a_neuron_is_the_same_in_any_batch(tmp_path):
    """Alone, among others, in reverse order, in a shard, and after a resume."""
    names = ["act3:0-4", "max(conv2:1,conv2:4)", "-conv2:3", "conv2:2@center", "fc:7"]
    assert fit(tmp_path / "all", names) == 0
    together = {row.neuron: row for row in read_rows(tmp_path / "all")}
    assert fit(tmp_path / "reverse", list(reversed(together))) == 0
    for row in read_rows(tmp_path / "reverse"):
        assert same(row, together[row.neuron]), row.neuron
    for name in ("act3:3", "max(conv2:1,conv2:4)", "-conv2:3", "fc:7"):
        assert fit(tmp_path / name, [name]) == 0
        assert same(read_rows(tmp_path / name)[0], together[name]), name
    for shard in ("0/2", "1/2"):
        assert fit(tmp_path / "shards", names, "--data.shard", shard) == 0
    sharded = read_rows(tmp_path / "shards")
    assert {row.neuron for row in sharded} == set(together)
    assert all(same(row, together[row.neuron]) for row in sharded)


def test_another_seed_gives_other_images(tmp_path):
    assert fit(tmp_path / "a", ["act3:0"], "--seed_everything", "1") == 0
    assert fit(tmp_path / "b", ["act3:0"], "--seed_everything", "2") == 0
    (one,), (other,) = read_rows(tmp_path / "a"), read_rows(tmp_path / "b")
    assert (one.seed, other.seed) == (1, 2)
    assert not set(one.image) & set(other.image)


def test_a_run_is_resumed_and_extended(tmp_path, caplog, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    # Enough steps for the first neurons only.
    assert fit(run, ["act3:0-11"], "--trainer.max_steps", "60") == 0
    manifest = read_manifest(run)
    early = {row.neuron: row for row in read_rows(run)}
    assert manifest.status == "interrupted"
    assert 0 < len(early) < 12
    assert manifest.neurons["finished"] == len(early)
    assert "neurons to go; the same command continues" in caplog.text

    assert fit(run, ["act3:0-11"]) == 0
    assert f"resuming: {len(early)} of 12 neurons are finished already" in caplog.text
    manifest = read_manifest(run)
    assert manifest.status == "finished"
    assert manifest.neurons["finished"] == 12
    assert fit(whole, ["act3:0-11"]) == 0
    resumed = {row.neuron: row for row in read_rows(run)}
    assert len(resumed) == 12
    assert all(same(row, resumed[row.neuron]) for row in read_rows(whole))

    assert fit(run, ["act3:0-13"]) == 0
    assert len(read_rows(run)) == 14
    parts = sorted((run / "neurons").glob("*.parquet"))
    assert fit(run, ["act3:0-13"]) == 0
    assert "all 14 neurons are finished already" in caplog.text
    assert read_manifest(run).status == "finished"
    assert sorted((run / "neurons").glob("*.parquet")) == parts
    assert "act3:13" in capsys.readouterr().out


def test_a_run_of_an_earlier_method_does_not_go_on(tmp_path, monkeypatch, capsys):
    assert fit(tmp_path / "run", ["act3:0"], "--tensorboard.every", "0") == 0
    monkeypatch.setattr("polylight.module.METHOD", METHOD + 1)
    capsys.readouterr()
    assert fit(tmp_path / "run", ["act3:0-1"], "--tensorboard.every", "0") == 2
    assert f"run of other settings (method: {METHOD} -> {METHOD + 1})" in capsys.readouterr().err
    assert len(list(read_rows(tmp_path / "run"))) == 1


def test_global_step_counts_ascent_steps(tmp_path):
    # 12 steps an image, 6 slots, 4 neurons of 8 images: 6 rounds of the pool, the last one short.
    assert fit(tmp_path / "run", ["act3:0-3"]) == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert board.Scalars("neurons/finished")[-1].step == 6 * 12
    assert fit(tmp_path / "cut", ["act3:0-3"], "--trainer.max_steps", "30") == 0
    assert read_manifest(tmp_path / "cut").image_steps == 30 * 6


def test_max_time_ends_a_run_that_can_go_on(tmp_path):
    run = tmp_path / "run"
    assert fit(run, ["act3:*"], "--trainer.max_time", "00:00:00:00") == 0
    assert read_manifest(run).status == "interrupted"
    assert fit(run, ["act3:0"]) == 0
    assert read_manifest(run).status == "finished"


def test_a_run_survives_being_stopped(tmp_path):
    """Stopped three times, each time by another signal, it goes on from where it was."""
    run = tmp_path / "run"
    neurons = ["--data.neurons", json.dumps(["act3:*"])]
    command = [sys.executable, "-m", "polylight", "fit", "--run_dir", str(run), *neurons, *TINY]
    command += ["--model.max_steps", "40"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = set()
    for name in ("SIGINT", "SIGTERM", "SIGKILL"):
        parts = len(list(run.glob("neurons/*.parquet")))
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # A job in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 60
        while len(list(run.glob("neurons/*.parquet"))) == parts and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0, errors
        before, done = done, {row.neuron for row in read_rows(run)}
        assert before < done
        assert len(done) < 24
        if name != "SIGKILL":
            assert read_manifest(run).status == "interrupted"
            assert b"Traceback" not in errors
    assert fit(run, ["act3:*"], "--model.max_steps", "40") == 0
    assert len(read_rows(run)) == 24
    assert read_manifest(run).status == "finished"


def test_a_measured_pool_is_kept_when_the_run_goes_on(tmp_path, monkeypatch):
    measured = [("--model.pool_size", "null")]
    tiny = [*TINY, *measured[0]]
    assert fit(tmp_path, ["act3:0-1"], tiny=tiny) == 0
    device = read_manifest(tmp_path).device
    assert device["pool_size"] == 8  # two neurons have eight images of a round to make
    assert device["kernels"] == "numba"
    monkeypatch.setattr("polylight.module.choose_pool_size", lambda *given: pytest.fail("anew"))
    assert fit(tmp_path, ["act3:0-3"], tiny=tiny) == 0
    assert read_manifest(tmp_path).device == device
    assert len(read_rows(tmp_path)) == 4


def test_images_that_climb_in_bfloat16_are_judged_in_float32(tmp_path):
    assert fit(tmp_path / "exact", ["act3:0-3"]) == 0
    assert fit(tmp_path / "coarse", ["act3:0-3"], "--model.precision", "bfloat16") == 0
    assert read_manifest(tmp_path / "coarse").settings["precision"] == "bfloat16"
    exact, coarse = (read_rows(tmp_path / name) for name in ("exact", "coarse"))
    for one, other in zip(exact, coarse, strict=True):
        assert one.neuron == other.neuron
        assert not np.array_equal(one.activation, other.activation)
        assert np.median(other.activation) == pytest.approx(np.median(one.activation), rel=0.2)
    # The settings differ, and so does the run.
    assert fit(tmp_path / "exact", ["act3:0-3"], "--model.precision", "bfloat16") == 2


def test_rows_made_in_a_thread_are_the_same(tmp_path, monkeypatch):
    neurons = ["act3:0-3", "max(act3:1,conv1:4)"]
    assert fit(tmp_path / "one", neurons) == 0
    monkeypatch.setattr("polylight.session.ScoreNeurons", partial(ScoreNeurons, threaded=True))
    assert fit(tmp_path / "other", neurons) == 0
    for one, other in zip(*(read_rows(tmp_path / n) for n in ("one", "other")), strict=True):
        assert same(one, other)
    # Cut off before the end, what was through is written.
    assert fit(tmp_path / "cut", neurons, "--trainer.max_steps", "60") == 0
    manifest = read_manifest(tmp_path / "cut")
    assert manifest.status == "interrupted"
    assert len(read_rows(tmp_path / "cut")) == manifest.neurons["finished"]
