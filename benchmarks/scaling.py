"""Whether time a neuron and memory stay the same as neurons grow from 16 to 4,096."""

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Row, gate, measure, row
from benchmarks.process import Watched, fit
from benchmarks.quickstart import are_equal
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows, read_run

_LAYER = "wide"
# Every neuron is the same work: no image is stopped early, no neuron at an elbow, and TensorBoard
# shows the images of all of them, not only of the first 64. As many neurons as the pool has slots
# climb side by side and are finished together, so the fewest neurons fill it twice.
_IMAGES, _STEPS = 8, 4
_ARGUMENTS = (
    *("--model.subject", "benchmarks.small:subject"),
    *("--model.embedder", "benchmarks.small:embedder"),
    *("--model.image_size", "32"),
    *("--model.max_steps", str(_STEPS)),
    *("--model.patience", "0"),
    *("--model.min_images", str(_IMAGES)),
    *("--model.max_images", str(_IMAGES)),
    *("--model.pool_size", "8"),
    *("--model.reference_images", "64"),
    *("--model.max_clusters", "4"),
    *("--model.restarts", "4"),
    *("--tensorboard.max_grids", "4096"),
    *("--trainer.accelerator", "cpu"),
)
# Layers this small wait for a second thread longer than it helps.
_THREADS = "1"
# By the number of neurons; a short run tells less, so it is repeated more often.
_REPEATS = {16: 5, 64: 5, 256: 3, 1024: 3, 4096: 1}
_QUICK_REPEATS = {16: 1, 64: 1}
_COMPARED = 16
_TOLERANCE = 5.0


def turns(repeats: Mapping[int, int]) -> Iterator[int]:
    """Numbers of neurons in the order in which they run: in turns, while any are left."""
    for turn in range(max(repeats.values())):
        yield from (size for size, count in repeats.items() if turn < count)


def run_all(repeats: Mapping[int, int]) -> tuple[dict[int, list[Watched]], list[Row]]:
    """Run all sizes.

    Args:
        repeats: How often each number of neurons runs.

    Returns:
        By number of neurons, what was seen; and the gates.
    """
    runs: dict[int, list[Watched]] = {size: [] for size in repeats}
    compared: list[list[NeuronRow]] = []
    whole = True
    names = [f"{_LAYER}:{channel}" for channel in range(_COMPARED)]
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "POLYLIGHT_CACHE": f"{directory}/cache",
            "OMP_NUM_THREADS": _THREADS,
        }
        # The first size runs once more: the reference frame is made then, and files are read from
        # the disk.
        for index, size in enumerate(itertools.chain([min(repeats)], turns(repeats))):
            run_dir = Path(directory) / f"run-{index}"
            neurons = ["--data.neurons", json.dumps([f"{_LAYER}:0-{size - 1}"])]
            watched = fit([*_ARGUMENTS, *neurons], run_dir, environment)
            if index:
                runs[size].append(watched)
            whole &= is_whole(watched, run_dir, size)
            compared.append(read_rows(run_dir, names))
    same = all(are_equal(compared[0], other) for other in compared[1:])
    gates = [
        gate(
            "every neuron of every run has a row, and took the same number of steps",
            float(whole),
            (">=", 1.0),
            "",
        ),
        gate(
            f"the first {_COMPARED} neurons gave the same images and scores in every run",
            float(same),
            (">=", 1.0),
            "",
        ),
    ]
    return runs, gates


def is_whole(watched: Watched, run_dir: Path, size: int) -> bool:
    """Whether a run has done all it was asked for, and no more."""
    table = read_run(run_dir, columns=["neuron", "status"])
    statuses = set(table["status"].to_pylist())
    return (
        table.num_rows == size == sum(n for _, n in watched.finished)
        and "failed" not in statuses
        and watched.manifest.image_steps == size * _IMAGES * _STEPS
    )


def time_rows(runs: Mapping[int, Sequence[Watched]]) -> list[Row]:
    """How long a neuron takes, and how far that is from the middle of all sizes.

    Args:
        runs: By number of neurons.

    Returns:
        Rows; the last of them are about the largest size only.
    """
    found = {n: [1000 * w.seconds_per_neuron() for w in many] for n, many in runs.items()}
    middles = {n: statistics.median(values) for n, values in found.items()}
    middle = statistics.median(middles.values())
    rows = [
        row(values, case="scaling, time of a neuron", unit="ms", shape=_shape(n))
        for n, values in found.items()
    ]
    away = {n: 100 * abs(value / middle - 1) for n, value in middles.items()}
    rows += [
        row(
            [value],
            case="scaling, time of a neuron, away from the middle of all sizes",
            unit="%",
            shape=_shape(n),
            limit=("<=", _TOLERANCE),
        )
        for n, value in away.items()
    ]
    largest = max(runs)
    rows.append(
        row(
            [max(away.values())],
            case="scaling, time of a neuron, farthest from the middle of all sizes",
            unit="%",
            shape=f"{min(runs):,} to {largest:,} neurons",
            limit=("<=", _TOLERANCE),
            level="headline",
        )
    )
    drift = [
        100 * (w.seconds_per_neuron(0.75) / w.seconds_per_neuron(0, 0.25) - 1)
        for w in runs[largest]
    ]
    rows.append(
        row(
            drift,
            case="scaling, time of a neuron, last quarter of the run above the first",
            unit="%",
            shape=_shape(largest),
        )
    )
    return rows + [
        row(
            [1000 * w.manifest.shares[stage] * w.manifest.seconds["total"] / n for w in many],
            case=f"scaling, stage {stage}",
            unit="ms/neuron",
            shape=_shape(n),
            level="detail",
        )
        for n, many in runs.items()
        for stage in many[0].manifest.shares
    ]


def memory_rows(runs: Mapping[int, Sequence[Watched]]) -> list[Row]:
    """How much memory is resident, and how far that is from what the fewest neurons take.

    Args:
        runs: By number of neurons.

    Returns:
        Rows.
    """
    rows: list[Row] = []
    peaks = {n: [w.peak for w in many] for n, many in runs.items()}
    moments = {
        "peak of the process": peaks,
        "as the first neurons are through": {
            n: [w.resident(w.finished[0][0]) for w in many] for n, many in runs.items()
        },
        "as the last ones are": {
            n: [w.resident(w.finished[-1][0]) for w in many] for n, many in runs.items()
        },
    }
    for moment, found in moments.items():
        rows += [
            row(values, case=f"scaling, resident memory, {moment}", unit="MiB", shape=_shape(n))
            for n, values in found.items()
        ]
    fewest, *more = sorted(runs)
    least = statistics.median(peaks[fewest])
    rows += [
        row(
            [100 * abs(statistics.median(peaks[n]) / least - 1)],
            case=f"scaling, peak memory, away from that of {fewest} neurons",
            unit="%",
            shape=_shape(n),
            limit=("<=", _TOLERANCE),
            level="headline" if n == more[-1] else "table",
        )
        for n in more
    ]
    return rows


def _shape(size: int) -> str:
    return f"{size:,} neurons"


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    repeats = _QUICK_REPEATS if quick else _REPEATS
    runs, gates = run_all(repeats)
    config = {
        "arguments": list(_ARGUMENTS),
        "OMP_NUM_THREADS": _THREADS,
        "repeats": {str(size): count for size, count in repeats.items()},
    }
    if not all(g.passed for g in gates):
        return gates, config
    return [*gates, *time_rows(runs), *memory_rows(runs)], config


if __name__ == "__main__":
    sys.exit(measure("scaling", run, sys.argv[1:]))
