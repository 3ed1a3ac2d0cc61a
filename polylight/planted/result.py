"""All that a validation has found: summed up, written and printed."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from polylight.planted.outcome import Outcome
from polylight.planted.photos import Strength
from polylight.planted.plot import draw
from polylight.planted.reliability import Agreement, calibration, seeds_agreement
from polylight.planted.summary import overall, summarise, to_json
from polylight.planted.table import print_curve, print_reliability, print_summary
from polylight.run.atomic import write_atomically

TARGETS = {
    "auroc": 0.93,
    "auroc_screened": 0.97,
    "spearman": 0.85,
    "spearman_screened": 0.90,
    "above_mean": 0.98,
    "above_highest": 0.95,
    "facet_recall": 0.97,
    "controls_difference": 0.05,
}
"""What the primary score is meant to reach over everything."""


@dataclass(frozen=True)
class Embedders:
    """Two networks that have embedded the same images, and how far the scores agree."""

    first: str
    second: str
    agreement: Agreement


@dataclass(kw_only=True)
class Result:
    """What a validation has found.

    Attributes:
        outcomes: Of every planted neuron, recipe and seed; the first is of our recipe.
        shorter: Of the first images of neurons alone, a recipe for each number of images.
        calibrated: Of the neurons that were scored with many seeds.
        embedders: By subject.
        strength: By subject.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    shorter: list[Outcome] = field(default_factory=list)
    calibrated: list[Outcome] = field(default_factory=list)
    embedders: dict[str, Embedders] = field(default_factory=dict)
    strength: dict[str, Strength] = field(default_factory=dict)


def conclude(result: Result, directory: Path, settings: Mapping[str, Any]) -> None:
    """Sum a validation up, write ``validation.json`` and the figure, and print the tables.

    Args:
        result: What was found.
        directory: Where to write.
        settings: What it was found with, as JSON values.

    Raises:
        InputError: If there are no outcomes.
    """
    summary = summarise(result.outcomes, TARGETS)
    ours = result.outcomes[0].recipe
    checked = calibration(result.calibrated)
    reliability = {
        "seeds": dataclasses.asdict(
            seeds_agreement([o for o in result.outcomes if o.recipe == ours])
        ),
        "calibration": dataclasses.asdict(checked) if checked else None,
        "embedders": {
            subject: {"first": e.first, "second": e.second, **dataclasses.asdict(e.agreement)}
            for subject, e in result.embedders.items()
        },
        "strength": {s: dataclasses.asdict(found) for s, found in result.strength.items()},
    }
    curve = overall(summarise(result.shorter, {})) if result.shorter else []
    report = {
        **settings,
        **summary.to_json(),
        "by_count": [to_json(scope) for scope in curve],
        "reliability": reliability,
        "outcomes": [dataclasses.asdict(o) for o in result.outcomes],
    }
    text = json.dumps(_finite(report), indent=1) + "\n"
    path = directory / "validation.json"
    write_atomically(path, lambda file: file.write(text.encode()))
    draw(result.outcomes, directory / "validation.png")
    console = Console()
    print_summary(summary, console)
    if curve:
        print_curve([*curve, *overall(summary)[:1]], console)
    print_reliability(reliability, console)
    console.print(f"{path}, and validation.png beside it", soft_wrap=True)


def _finite(tree: Any) -> Any:
    """JSON knows no NaN: what is not finite is null."""
    if isinstance(tree, dict):
        return {str(k): _finite(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(v) for v in tree]
    if isinstance(tree, float) and not (float("-inf") < tree < float("inf")):
        return None
    return tree
