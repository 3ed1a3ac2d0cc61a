"""``polylight validate``: score neurons of known polysemanticity, and say how well it went."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from polylight.errors import InputError
from polylight.planted.collect import Collector
from polylight.planted.outcome import PRIMARY
from polylight.planted.photos import strength_of
from polylight.planted.plan import LayerPlan, Sizes, SubjectPlan
from polylight.planted.prepare import Ready, file_name, prepare
from polylight.planted.reliability import (
    agreement,
    rescore,
)
from polylight.planted.result import Embedders, Result, conclude
from polylight.planted.runs import Task, run_task
from polylight.reference import load_or_make_reference
from polylight.run.atomic import check_writable
from polylight.run.schema import NeuronRow

_logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What is scored again to see whether it comes out the same.

    Attributes:
        seeds: Seeds that the single channels are scored with, the first included, >= 1.
        calibration_neurons: Planted neurons of each layer whose intervals are checked.
        calibration_seeds: Seeds that these are scored with; 0 for no check, else >= 3.
    """

    seeds: int = 2
    calibration_neurons: int = 2
    calibration_seeds: int = 0

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.calibration_neurons < 0:
            raise InputError(
                "seeds has to be at least 1 and calibration_neurons at least 0, not "
                f"{self.seeds} and {self.calibration_neurons}."
            )
        if self.calibration_seeds < 0 or 0 < self.calibration_seeds < 3:
            raise InputError(
                "calibration_seeds has to be 0 for no check or at least 3, not "
                f"{self.calibration_seeds}."
            )


def validate(
    run_dir: str,
    subjects: list[SubjectPlan],
    sizes: Sizes = Sizes(),  # noqa: B008
    repeats: Repeats = Repeats(),
    half: Literal["all", "tune", "report"] = "report",
    seed: int = 0,
    recipes: dict[str, dict[str, Any]] | None = None,
    model: dict[str, Any] | None = None,
    counts: list[int] = [],  # noqa: B006
    images: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
) -> None:
    """Score neurons of known polysemanticity, and say how well the score tells them.

    Writes ``validation.json``, ``validation.png`` and ``validation.svg`` into the directory, and a
    run for each subject, recipe and seed beside them. The same command continues one that was cut
    off.

    Args:
        run_dir: Directory of the validation; made if need be.
        subjects: Networks, and the layers whose channels are used.
        sizes: How many neurons of each kind a layer gives.
        repeats: What is scored again, with other seeds.
        half: Which half of the channels is used; settings are tuned on the other.
        seed: Of the draw of neurons, and of the runs.
        recipes: For each recipe, settings of the model that differ; null for ours and independent
            starts. The first is ours.
        model: Settings of the model that all recipes share, as in ``polylight fit``.
        counts: Numbers of images: neurons are scored also by only their first so many.
        images: Folder of photos, to compare with and to screen channels by.
        accelerator: Lightning's: ``auto``, ``cpu`` or ``gpu``.

    Raises:
        InputError: If something that was given cannot be used; nothing is written then.
    """
    if any(count < 1 for count in counts):
        raise InputError(f"counts are numbers of images, at least 1 each, got {counts}.")
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    chosen = recipes or {PRIMARY: {}, "independent": {"repulsion": 0.0}}
    ready = prepare(subjects, chosen, model or {}, sizes, seed, half, images, device)
    directory = Path(run_dir)
    check_writable(directory)
    validation = _Validation(
        directory=directory,
        subjects=ready,
        repeats=repeats,
        seed=seed,
        counts=counts,
        accelerator=accelerator,
    )
    for s in ready:
        validation.run_subject(s)
    settings = {
        "half": half,
        "seed": seed,
        "sizes": dataclasses.asdict(sizes),
        "repeats": dataclasses.asdict(repeats),
        "photos": ready[0].photos.count if ready[0].photos else 0,
        "subjects": [dataclasses.asdict(plan) for plan in subjects],
        "recipes": chosen,
        "counts": counts,
        "model": model or {},
    }
    conclude(validation.result, directory, settings)


@dataclass(kw_only=True)
class _Validation:
    """The subjects, one after the other, and what was found."""

    directory: Path
    subjects: Sequence[Ready]
    repeats: Repeats
    seed: int
    counts: Sequence[int]
    accelerator: str
    result: Result = field(default_factory=Result)

    def run_subject(self, s: Ready) -> None:
        """Run what is missing of a subject, and collect what came of it."""
        planted = [p for plan in s.layers for p in plan.planted]
        everything = [str(p.neuron) for p in planted]
        singles = [str(p.neuron) for p in planted if p.kind == "single"]
        screened = s.photos.screened if s.photos else {}
        ours = next(iter(s.setups))
        for recipe in s.setups:
            # Only ours is scored again.
            seeds = self.repeats.seeds if recipe == ours else 1
            for seed in range(self.seed, self.seed + seeds):
                neurons = everything if seed == self.seed else singles
                task, rows = self._run(s, recipe, seed, neurons, "seed")
                found = Collector(task, s.layers, screened)
                self.result.outcomes += found.outcomes(rows)
                if recipe == ours:
                    self.result.outcomes += found.views(rows)
                if recipe == ours and seed == self.seed:
                    self.result.outcomes += found.pooled(rows)
                    for count in self.counts:
                        self.result.shorter += found.first(rows, count)
                    alone = [row for row in rows if row.neuron in set(singles)]
                    self._look_again(s, task, alone)
        self._calibrate(s, ours)

    def _run(
        self, s: Ready, recipe: str, seed: int, neurons: list[str], kind: str
    ) -> tuple[Task, list[NeuronRow]]:
        setup = s.setups[recipe]
        name = file_name(s.plan.subject, recipe, f"{kind}{seed}")
        task = Task(
            subject=s.plan.subject,
            recipe=recipe,
            seed=seed,
            directory=self.directory / "runs" / name,
            neurons=neurons,
            module=setup.arguments,
            reference=load_or_make_reference(s.model, s.embedder, setup.frame, _CPU),
            scorer=setup.scorer,
        )
        _logger.info("%s, recipe %s, %s %d", task.subject, recipe, kind, seed)
        return task, run_task(task, self.accelerator)

    def _look_again(self, s: Ready, task: Task, singles: Sequence[NeuronRow]) -> None:
        """Compare single channels with photos, and as a second embedder sees them."""
        name = s.plan.subject
        scored = [row for row in singles if row.status == "ok"]
        if s.photos is not None and scored:
            self.result.strength[name] = strength_of(scored, s.photos.pooled)
        if s.second is not None:
            frame = load_or_make_reference(s.model, s.second, s.setups[task.recipe].frame, _CPU)
            again = rescore(scored, s.second, frame, task.scorer, task.seed)
            first = [row.score for row in scored if row.score is not None]
            self.result.embedders[name] = Embedders(
                s.embedder.name, s.second.name, agreement(first, again)
            )

    def _calibrate(self, s: Ready, recipe: str) -> None:
        """Score a few neurons of each layer with many seeds."""
        seeds, count = self.repeats.calibration_seeds, self.repeats.calibration_neurons
        if not seeds or not count:
            return
        names = [str(p.neuron) for plan in s.layers for p in _mean_distance(plan, count)]
        for seed in range(self.seed, self.seed + seeds):
            task, rows = self._run(s, recipe, seed, names, "calibration")
            self.result.calibrated += Collector(task, s.layers, {}).outcomes(rows)


def _mean_distance(plan: LayerPlan, count: int) -> list[Any]:
    """Take neurons of as many kinds as there are: a composite, a single, a composite of more."""
    by_m: dict[int, list[Any]] = {}
    for p in plan.planted:
        if p.kind in ("single", "max", "logits"):
            by_m.setdefault(p.m, []).append(p)
    order = [group[i] for i in range(count) for group in by_m.values() if i < len(group)]
    return order[:count]
