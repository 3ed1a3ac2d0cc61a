"""What a report says in words: numbers, times, names of files, and facts by name."""

import hashlib
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from polylight.report.content import NeuronSummary, Picture, Run
from polylight.run.manifest import Manifest

NONE = "\u2013"
"""An en dash, where there is no number."""

_FORMS = {
    "score": ".3f",
    "score_low": ".2f",
    "score_high": ".2f",
    "separation": ".1f",
    "p_value": ".3f",
    "q_value": ".3f",
    "k": "d",
    "k_stability": ".2f",
    "k_eff": ".2f",
    "coverage": ".2f",
    "score_paper": ".3f",
    "above_photos": ".2f",
    "num_images": ",d",
    "steps": ",d",
}
# A name in which nothing is lost if its one colon becomes a dash. Capitals are left out, as file
# systems may take them for small letters.
_PLAIN = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*(:[0-9]+)?")
_OTHERS = re.compile(r"[^A-Za-z0-9_.-]+|\.{2,}")
_LONGEST_SLUG, _HASH_DIGITS = 100, 12
_STOPPED = {
    "elbow": "the elbow: their mean similarity had stopped changing",
    "max_images": "max_images, the most that a neuron may have",
}


def number(value: float | None, form: str = "#.3g") -> str:
    """Format a number, or an en dash where there is none.

    Args:
        value: Any number, or None.
        form: A format as of ``format``.

    Returns:
        The text, with a minus sign that is one.
    """
    if value is None or not math.isfinite(value):
        return NONE
    return format(value, form).rstrip(".").replace("-", "\u2212")


def shown(neuron: NeuronSummary, column: str) -> str:
    """Format a column of a neuron's numbers as every table of a report does."""
    return number(neuron.values[column], _FORMS[column])


def score(neuron: NeuronSummary) -> str:
    """Format the score that a neuron's run reports."""
    return shown(neuron, neuron.reported)


def interval(neuron: NeuronSummary) -> str:
    """Format the interval of that score."""
    if neuron.interval is None:
        return NONE
    return " to ".join(shown(neuron, column) for column in ("score_low", "score_high"))


def percent(share: float) -> str:
    """Format a share in whole percent, as with two decimals; what is not 0 does not read as 0."""
    # Another order would write .815 as 82 % beside .81.
    return "under 1 %" if 0 < share < 0.005 else f"{100 * float(f'{share:.2f}'):.0f} %"


def counted(count: int, what: str) -> str:
    """Write how many there are of something whose plural takes an s."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def when(stamp: str) -> str:
    """Write an ISO 8601 time for people; what is none stays as it is."""
    try:
        return datetime.fromisoformat(stamp).strftime("%d %B %Y, %H:%M %Z").lstrip("0")
    except ValueError:
        return stamp


def slug(text: str) -> str:
    """Turn the name of a neuron or a layer into a name for its page, the same in every run.

    ``blocks.4:17`` becomes ``blocks.4-17``. Where something would be lost, the name ends in a hash
    of the text, which begins with ``x`` as no channel does.

    Args:
        text: Any text.

    Returns:
        Letters, digits, ``-``, ``_`` and ``.``, of which neither a dot nor a dash comes first, at
        most 100 characters; another one for any other text, even where case does not count.
    """
    if _PLAIN.fullmatch(text) and len(text) <= _LONGEST_SLUG:
        return text.replace(":", "-")
    # A lone surrogate is no text that could be encoded otherwise.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_HASH_DIGITS]
    readable = _OTHERS.sub("-", text).strip(".-")[: _LONGEST_SLUG - _HASH_DIGITS - 2].rstrip(".-")
    return f"{readable}-x{digest}" if readable else f"x{digest}"


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
        case "finished" if run.missing_shards:
            there = run.num_shards - run.missing_shards
            return (
                f"{there} of {run.num_shards} shards {'is' if there == 1 else 'are'} here, and "
                "finished. Write the report again once the others are in the same directory."
            )
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
    scores = [n.score for n in neurons if n.score is not None]
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


def typical(neuron: NeuronSummary) -> str:
    """Name what a row of one image a feature shows, for those who cannot see it."""
    if not neuron.weights:
        return f"An image of {neuron.name}, which has no score"
    shares = [f"feature {i} ({percent(w)})" for i, w in enumerate(neuron.weights, start=1)]
    return f"Typical images of {neuron.name}: {', '.join(shares)}"


def picture(neuron: NeuronSummary, cluster: int, image: Picture | None = None) -> str:
    """Say what an image shows, for those who cannot see it.

    Args:
        neuron: The neuron.
        cluster: Its number; 0 for images that are not valid.
        image: The image; None for the typical one of its cluster.

    Returns:
        Which neuron, which feature and its share, and which image.
    """
    of = f"{neuron.name}, not valid"
    if cluster:
        known = cluster <= len(neuron.weights)
        share = f" ({percent(neuron.weights[cluster - 1])})" if known else ""
        of = f"{neuron.name}, feature {cluster}{share}"
    if image is None:
        return f"{of}: typical image"
    if image.is_damaged:
        return f"{of}: image {image.image} is damaged"
    kind = "typical image" if image.is_medoid else "image"
    return f"{of}: {kind} {image.image}, activation {number(image.activation)}"


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
        A line for a POSIX shell; None where the run did not keep its configuration, or is of a
        network in memory.
    """
    config = (run.path / "config.yaml").resolve()
    networks = (run.manifest.subject, run.manifest.embedder) if run.manifest else ()
    if not config.is_file() or any(network.get("source") == "live" for network in networks):
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
