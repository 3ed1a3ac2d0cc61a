"""How many neurons a minute, for a whole layer, and where the time goes."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Limit, Row, gate, measure, row
from benchmarks.process import Watched, fit
from benchmarks.quickstart import are_equal, outside_ascent
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows

_LAYER, _CHANNELS = "blocks.1", 24
_ARGUMENTS = (
    *("--model.subject", "efficientnet_lite0"),
    *("--model.embedder", "efficientnet_lite2"),
    *("--trainer.accelerator", "cpu"),
)
_LIMITS: dict[str, Limit] = {"cluster": ("<=", 1.0)}


def is_complete(rows: Sequence[NeuronRow], channels: int) -> bool:
    """Whether every channel of the layer has one row, and none has failed."""
    names = sorted(row.neuron for row in rows)
    return names == sorted(f"{_LAYER}:{c}" for c in range(channels)) and all(
        row.status != "failed" for row in rows
    )


def layer_rows(runs: Sequence[Watched]) -> list[Row]:
    """What runs of the same neurons took.

    Args:
        runs: What was seen of each.

    Returns:
        Rows.
    """
    manifests = [w.manifest for w in runs]
    first = manifests[0]
    neurons = first.neurons["finished"]
    shape = f"{neurons} neurons, {first.images} images"

    def one(case: str, values: Sequence[float], unit: str, **more: Any) -> Row:
        return row(values, case=f"layer, {case}", unit=unit, shape=shape, **more)

    loaded = [m.seconds["total"] - m.seconds["load"] - m.seconds["reference"] for m in manifests]
    rows = [
        one(
            "whole process",
            [60.0 * neurons / w.seconds for w in runs],
            "neurons/minute",
            level="headline",
        ),
        one("once loaded", [60.0 * neurons / s for s in loaded], "neurons/minute"),
        one("ascent", [m.image_steps_per_second for m in manifests], "image-steps/s"),
        one("ascent", [m.image_steps / neurons for m in manifests], "image-steps/neuron"),
        one(
            "occupancy of the pool, whole run",
            [100.0 * m.occupancy for m in manifests],
            "%",
        ),
        one(
            "time outside ascent steps once loaded",
            [100.0 * outside_ascent(m.seconds) for m in manifests],
            "%",
            level="headline",
        ),
    ]
    for stage in first.shares:
        shares = [100.0 * m.shares[stage] for m in manifests]
        rows.append(one(f"stage {stage}", shares, "% of the time", limit=_LIMITS.get(stage)))
    apart = [w.seconds - w.manifest.seconds["total"] for w in runs]
    rows.append(one("process outside the run: imports, pictures, table", apart, "s"))
    rows.append(one("peak of resident memory", [w.peak for w in runs], "MiB"))
    return rows


def run(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Run the benchmark; see the module's first line."""
    repeats, channels = (1, 2) if quick else (3, _CHANNELS)
    less = ["--model.max_steps", "16", "--model.max_images", "8"] if quick else []
    neurons = [f"{_LAYER}:0-{channels - 1}"] if quick else [f"{_LAYER}:*"]
    arguments = [*_ARGUMENTS, *less, "--data.neurons", json.dumps(neurons)]
    config = {"arguments": arguments, "preset": "fast", "repeats": repeats}
    runs, found = [], []
    with tempfile.TemporaryDirectory() as directory:
        for index in range(repeats):
            run_dir = Path(directory) / f"run-{index}"
            runs.append(fit(arguments, run_dir))
            found.append(read_rows(run_dir))
    complete = all(is_complete(rows, channels) for rows in found)
    same = all(are_equal(found[0], rows) for rows in found[1:])
    gates = [
        gate("every channel of the layer has a row in every run", float(complete), (">=", 1.0), ""),
        gate("all runs of the layer gave the same", float(same), (">=", 1.0), ""),
    ]
    if not all(g.passed for g in gates):
        return gates, config
    return [*gates, *layer_rows(runs)], config


if __name__ == "__main__":
    sys.exit(measure("layer", run, sys.argv[1:]))
