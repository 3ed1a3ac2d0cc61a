import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polylight.cli import main
from polylight.run.manifest import read_manifest

TINY = [
    *("--model.subject", "tiny:subject"),
    *("--model.embedder", "tiny:embedder"),
    *("--model.image_size", "32"),
    *("--model.max_steps", "12"),
    *("--model.patience", "0"),
    *("--model.max_images", "8"),
    *("--model.round_size", "4"),
    *("--model.pool_size", "8"),
    *("--model.steps_per_batch", "4"),
    *("--model.reference_images", "24"),
    *("--trainer.accelerator", "cpu"),
    *("--data.neurons", json.dumps(["act3:0-3"])),
]
# 4 neurons of 8 images of 12 steps, 8 at a time, 4 steps a turn.
STEPS, TURNS = 48, 12


def fit(run_dir, profiler, *more):
    return main(["fit", "--run_dir", str(run_dir), *TINY, "--trainer.profiler", profiler, *more])


@pytest.fixture
def reports(caplog):
    """What Lightning's profilers log; their logger hands nothing on to its parents."""
    logger = logging.getLogger("lightning.pytorch.profilers.profiler")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def section(text, action):
    """What the advanced profiler says of an action."""
    return text.split(f"Profile stats for: {action}\n")[1].split("Profile stats for:")[0]


def test_simple_profiler_reports_to_the_terminal(tmp_path):
    command = [sys.executable, "-m", "polylight", "fit", "--run_dir", str(tmp_path / "run"), *TINY]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, "--trainer.profiler", "simple"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "FIT Profiler Report" in done.stderr
    lines = [re.split(r"\s*\|\s*", line) for line in done.stderr.splitlines() if "|" in line]
    calls = {line[1]: line[3] for line in lines if len(line) > 4}
    assert calls["[Strategy]SingleDeviceStrategy.training_step"] == str(TURNS)
    assert calls["optimizer_step"] == str(STEPS)
    assert calls["[Callback]RunWriter.on_train_batch_end"] == str(TURNS)
    assert "act3:0" in done.stdout


def test_advanced_profiler_names_the_functions_of_the_ascent(tmp_path, reports):
    assert fit(tmp_path / "run", "advanced") == 0
    assert "FIT Profiler Report" in reports.text
    turn = section(reports.text, "[Strategy]SingleDeviceStrategy.training_step")
    assert re.search(rf"^ +{TURNS} .*engine.py:\d+\(turn\)$", turn, re.MULTILINE)
    assert re.search(r"pool.py:\d+\(climb\)$", turn, re.MULTILINE)
    # It looks away from a turn while the optimizer steps, and at the step instead.
    step = section(reports.text, "optimizer_step")
    assert re.search(rf"^ +{STEPS} .*optimizer.py:\d+\(step\)$", step, re.MULTILINE)


def test_pytorch_profiler_names_the_turns_of_the_ascent(tmp_path, reports):
    assert fit(tmp_path / "run", "pytorch") == 0
    assert "FIT Profiler Report" in reports.text
    # Its table holds the longest twenty rows; turns are the longest of all.
    assert "[pl][profile]run_training_batch" in reports.text
    assert "[pl][profile][Strategy]SingleDeviceStrategy.training" in reports.text
    manifest = read_manifest(tmp_path / "run")
    assert (manifest.status, manifest.image_steps) == ("finished", 8 * STEPS)
