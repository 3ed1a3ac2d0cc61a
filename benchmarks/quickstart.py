"""What the quickstart takes from start to end, where the time goes, and whether images are good."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import Level, Row, gate, measure, row
from benchmarks.machine import ROOT
from polylight.ascent.augmentation import identity
from polylight.ascent.objective import make_targets, read
from polylight.ascent.parametrization import ImageDecoder
from polylight.ascent.presets import PRESETS
from polylight.kernels import stream_key
from polylight.networks import load_model
from polylight.networks.subject import Subject
from polylight.neurons import parse_neurons
from polylight.run.manifest import Manifest, read_manifest
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows

_CONFIG = "configs/quickstart.yaml"
_CASE = "quickstart"
_BATCH = 16


def run_once(arguments: Sequence[str]) -> tuple[float, Manifest, list[NeuronRow]]:
    """Run the quickstart as a user would, in a process and a directory of its own.

    Args:
        arguments: What is added to its command.

    Returns:
        Wall-clock seconds of the process, and what it left behind.

    Raises:
        RuntimeError: If the command fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "polylight", "fit", "--config", _CONFIG]
        command += ["--run_dir", directory, *arguments]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        manifest = read_manifest(directory)
        if manifest is None:
            raise RuntimeError(f"{' '.join(command)} left no manifest")
        return seconds, manifest, read_rows(directory)


def outside_ascent(seconds: Mapping[str, float]) -> float:
    """Share of the time that is not spent in ascent steps, once all is loaded.

    Args:
        seconds: Wall-clock time by stage, as the manifest has it.

    Returns:
        The share of ``total - load - reference``.
    """
    working = seconds["total"] - seconds.get("load", 0.0) - seconds.get("reference", 0.0)
    return 1.0 - seconds["ascent"] / working


def is_finite(rows: Sequence[NeuronRow]) -> bool:
    """Whether every neuron has a score, and no number of it is missing or not finite.

    A criterion may be NaN where K is out of reach of the neuron's valid.
    """
    return all(
        r.status == "ok"
        and all(
            value is not None and bool(np.isfinite(value).all())
            for value in (r.score, r.score_paper, r.activation, r.embedding, r.cluster_weight)
        )
        for r in rows
    )


def are_equal(rows: Sequence[NeuronRow], others: Sequence[NeuronRow]) -> bool:
    """Whether two runs gave the same, bit for bit, in whatever order."""

    def by_name(many: Sequence[NeuronRow]) -> list[NeuronRow]:
        return sorted(many, key=lambda r: r.neuron)

    return len(rows) == len(others) and all(
        a.neuron == b.neuron
        and a.score == b.score
        and list(a.image) == list(b.image)
        and np.array_equal(a.activation, b.activation)
        and np.array_equal(a.embedding, b.embedding)
        for a, b in zip(by_name(rows), by_name(others), strict=True)
    )


@torch.no_grad()
def random_activations(
    subject: Subject, neurons: Sequence[str], count: int, sd: float
) -> npt.NDArray[np.float32]:
    """What random Fourier images do to neurons, read as the run reads its own images.

    Args:
        subject: The network, with the neurons' only layer.
        neurons: The neurons, plain channels.
        count: Images of each, a multiple of the batch of 16.
        sd: Standard deviation of the latents.

    Returns:
        [neurons, count].
    """
    preset = PRESETS["fast"]
    parsed = parse_neurons(list(neurons), subject.shapes)
    decoder = ImageDecoder(preset.parametrization)
    fixed = identity(_BATCH, torch.device("cpu"))
    found = []
    for neuron in parsed:
        targets = make_targets([neuron] * _BATCH, subject.shapes, {}, 1)
        keys = torch.tensor([stream_key("random image", neuron, i) for i in range(count)])
        values = []
        for some in torch.split(keys, _BATCH):
            latents = preset.parametrization.initial_latents(some)
            images = decoder(latents * (sd / preset.parametrization.sd))
            # Images are scored as they are stored, in 8 bits.
            images = (images * 255.0).round() / 255.0
            seen = subject.look(images, fixed)
            values.append(read(seen, targets, subject.channels[0]).value)
        found.append(torch.cat(values).numpy())
    return np.stack(found)


def speed_rows(seconds: Sequence[float], manifests: Sequence[Manifest]) -> list[Row]:
    """Where the time of some runs went.

    Args:
        seconds: Wall-clock time of each process.
        manifests: What each recorded.

    Returns:
        Rows.
    """
    first = manifests[0]
    shape = f"{first.neurons['total']} neurons, {first.images} images"

    def one(case: str, values: Sequence[float], unit: str, **more: Any) -> Row:
        return row(values, case=f"{_CASE}, {case}", unit=unit, shape=shape, **more)

    rows = [one("whole process", seconds, "s", limit=("<=", 120.0), level="headline")]
    rows += [one(f"stage {s}", [m.seconds[s] for m in manifests], "s") for s in first.seconds]
    apart = [s - m.seconds["total"] for s, m in zip(seconds, manifests, strict=True)]
    rows.append(one("process outside the stages: imports, models, pictures", apart, "s"))
    shares = [100.0 * outside_ascent(m.seconds) for m in manifests]
    rows.append(one("time outside ascent steps once loaded", shares, "%", level="headline"))
    rows.append(
        one(
            "occupancy of the pool, whole run",
            [100.0 * m.occupancy for m in manifests],
            "%",
            level="headline",
        )
    )
    rates = [m.image_steps_per_second for m in manifests]
    rows.append(one("ascent", rates, "image-steps/s", level="headline"))
    return rows


def image_rows(
    rows: Sequence[NeuronRow], random: npt.NDArray[np.float32], what: str, level: Level
) -> list[Row]:
    """Each neuron's images against random ones, and how many neurons prefer their own.

    Args:
        rows: The neurons.
        random: [neurons, images], activations of random images, in the same order.
        what: What the random images are.
        level: Of the sum.

    Returns:
        Two rows a neuron, of which the first has passed where the median over its images is at
        least the largest random activation, and the share of those.
    """
    found = []
    for neuron, others in zip(rows, random, strict=True):
        case = f"{neuron.neuron} against {what}"
        best = float(others.max())
        found += [
            row(
                neuron.activation.tolist(),
                case=case,
                unit="activation",
                limit=(">=", best),
                level="detail",
            ),
            row(
                others.tolist(),
                case=case,
                provider="random images",
                unit="activation",
                level="detail",
            ),
        ]
    passed = [float(bool(r.passed)) for r in found[::2]]
    share = row(
        [100.0 * sum(passed) / len(passed)],
        case=f"neurons whose median image beats the best of {random.shape[1]} {what}",
        unit="%",
        shape=f"{len(rows)} neurons",
        limit=(">=", 99.0),
        level=level,
    )
    return [share, *found]


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    repeats, count = (1, 32) if quick else (3, 256)
    less = ["--data.neurons", json.dumps(["blocks.4:0-1"]), "--model.max_steps", "32"]
    extra = less if quick else []
    seconds, manifests, runs = zip(*(run_once(extra) for _ in range(repeats)), strict=True)
    config = {"config": _CONFIG, "arguments": extra, "repeats": repeats, "random": count}
    neurons = runs[0]
    gates = [
        gate("all rows of the quickstart are finite", float(is_finite(neurons)), (">=", 1.0), ""),
        gate(
            "all repeats of the quickstart gave the same images and scores",
            float(all(are_equal(neurons, other) for other in runs[1:])),
            (">=", 1.0),
            "",
        ),
    ]
    if not all(g.passed for g in gates):
        return gates, config
    rows = gates + speed_rows(seconds, manifests)
    preset = PRESETS["fast"]
    canvas = preset.parametrization.size
    subject = Subject(load_model(manifests[0].subject["name"]), [neurons[0].layer], canvas)
    # The unit of a composite is that of its parts' probes, which no row keeps.
    channels = [n for n in neurons if n.channel is not None]
    names = [n.neuron for n in channels]
    for sd, what in (
        (preset.parametrization.sd, "random starting images"),
        (1.0, "random images of full contrast"),
    ):
        random = random_activations(subject, names, count, sd)
        rows += image_rows(channels, random, what, level="headline")
    return rows, config


if __name__ == "__main__":
    sys.exit(measure("quickstart", run, sys.argv[1:]))
