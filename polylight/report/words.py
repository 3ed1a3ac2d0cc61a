"""What a report says in words: plain sentences, and facts by name."""

import json
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polylight.report.content import NeuronSummary, Run
from polylight.report.figures import NONE, counted, duration, interval, number, percent, shown, when
from polylight.report.verdict import GLOSSARY, verdict, why_k
from polylight.run.manifest import Manifest

__all__ = [
    "GLOSSARY",
    "NONE",
    "cost",
    "counted",
    "duration",
    "interval",
    "listed",
    "making",
    "number",
    "percent",
    "reproduction",
    "shown",
    "state",
    "summary",
    "verdict",
    "when",
    "why_k",
]

_STOPPED = {
    "elbow": "the elbow: their mean similarity had stopped changing",
    "max_images": "max_images, the most that a neuron may have",
    "dead": "nothing drives the neuron",
    "failed": "none of them was finite",
}


def state(run: Run) -> str:
    """Say in words how far a run is."""
    if run.manifest is None:
        return (
            "This run has no manifest that can be read, so neither its networks nor its settings, "
            "its cost or whether it is finished are known."
        )
    total = run.manifest.neurons.get("total", 0)
    far = f"{len(run.neurons):,} of {counted(total, 'neuron')} are here"
    go_on = "The command that began it continues it; then write the report again."
    match run.state:
        case "finished":
            return "The run is finished."
        case "interrupted":
            return f"The run was interrupted: {far}. {go_on}"
        case _:
            return (
                "The run was still going on when this report was written, or its process was "
                f"killed: {far}. {go_on}"
            )


def summary(neurons: Sequence[NeuronSummary]) -> dict[str, str]:
    """Sum neurons up.

    Args:
        neurons: Any number of them.

    Returns:
        Short texts by name: how many there are, their median score, how many have more than one
        feature, and how many have no score.
    """
    scores = [n.values["score"] for n in neurons if n.values["score"] is not None]
    found = {"neurons": f"{len(neurons):,}"}
    if scores:
        several = sum((n.values["k"] or 0) > 1 for n in neurons)
        found["median score"] = f"{statistics.median(scores):.3f}"
        found["with several features"] = percent(several / len(scores))
    for status in ("dead", "failed"):
        if count := sum(n.values["status"] == status for n in neurons):
            found[status] = f"{count:,}"
    return found


def cost(manifest: Manifest) -> dict[str, str]:
    """Say what a run took.

    Args:
        manifest: With the counters of all ranks.

    Returns:
        Texts by name.
    """
    found = {
        "started": when(manifest.created),
        "last change": when(manifest.updated),
        "device": str(manifest.device.get("name", NONE)),
        "images": f"{manifest.images:,}",
        "image-steps": f"{manifest.image_steps:,}",
    }
    if total := manifest.seconds.get("total", 0.0):
        found["computing time"] = duration(total)
    if speed := manifest.image_steps_per_second:
        found["image-steps per second of ascent"] = number(speed, ",.0f" if speed >= 10 else ".2g")
    if manifest.slot_steps:
        found["occupancy of the pool"] = percent(manifest.occupancy)
    stages = sorted(manifest.shares.items(), key=lambda stage: -stage[1])
    if largest := [f"{stage} {percent(share)}" for stage, share in stages if share >= 0.01]:
        found["time by stage"] = ", ".join(largest)
    return found


def listed(manifest: Manifest) -> dict[str, str]:
    """List what the results of a run depend on, by dotted names.

    Args:
        manifest: Any.

    Returns:
        Networks, seed and settings, each as text.
    """
    whole = {
        "subject": manifest.subject,
        "embedder": manifest.embedder,
        "seed": manifest.seed,
        **manifest.settings,
    }
    return dict(_leaves(whole))


def making(neuron: NeuronSummary) -> dict[str, str]:
    """Say how a neuron's images came about.

    Args:
        neuron: The neuron.

    Returns:
        Texts by name.
    """
    values = neuron.values
    return {
        "seed": str(values["seed"]),
        "no more images because of": _STOPPED.get(values["stop_reason"], values["stop_reason"]),
        "ascent steps": shown(neuron, "steps"),
        "time": duration(values["seconds"]),
        "activation of random images": number(values["baseline"]),
    }


def reproduction(run: Run, neuron: NeuronSummary) -> str | None:
    """Write the command that makes a neuron anew.

    Args:
        run: The run that it is of.
        neuron: The neuron.

    Returns:
        A line for a POSIX shell; None where the run did not keep its configuration.
    """
    config = run.path / "config.yaml"
    if not config.is_file():
        return None
    words = ["polylight", "fit", "--config", str(config)]
    # A list in JSON is one in YAML too, and keeps quotes and brackets in a name apart.
    words += ["--data.neurons", json.dumps([neuron.name], ensure_ascii=False)]
    # The configuration may be that of one shard of several, and leave the pool to a measurement.
    words += ["--data.shard", "0/1"]
    size = run.manifest.device.get("pool_size") if run.manifest else None
    if size is not None:
        words += ["--model.pool_size", str(size)]
    if run.photos is not None:
        # They change nothing of a neuron, and may be gone.
        words += ["--data.photos", "null"]
    return shlex.join([*words, "--run_dir", f"reproduced-{neuron.slug}"])


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Give every leaf of nested settings its dotted name and its value as text."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
