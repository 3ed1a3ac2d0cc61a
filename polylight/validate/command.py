"""``polylight validate``: score neurons of known polysemanticity, and say how well it went."""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from polylight.embedding import Reference
from polylight.errors import InputError
from polylight.models import Model, load_model
from polylight.module import PolysemanticityModule
from polylight.reference import load_or_make_reference
from polylight.rows import NeuronRow
from polylight.validate.outcome import PRIMARY
from polylight.validate.photos import (
    pooled_activations,
    read_photos,
    screen_channels,
    strength_of,
)
from polylight.validate.plan import LayerPlan, Sizes, SubjectPlan, plan_layers
from polylight.validate.reliability import (
    agreement,
    rescore,
)
from polylight.validate.result import Embedders, Result, conclude
from polylight.validate.runs import POOLED, Task, outcomes_of, pooled_outcomes, run_task

_logger = logging.getLogger(__name__)


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


def _baseline() -> dict[str, dict[str, Any]]:
    return {PRIMARY: {}, "independent": {"repulsion": 0.0}}


def validate(
    run_dir: str,
    subjects: list[SubjectPlan],
    sizes: Sizes = Sizes(),  # noqa: B008
    repeats: Repeats = Repeats(),
    half: Literal["all", "tune", "report"] = "report",
    seed: int = 0,
    recipes: dict[str, dict[str, Any]] | None = None,
    model: dict[str, Any] | None = None,
    images: str | None = None,
    accelerator: str = "auto",
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
        images: Folder of photos, to compare with and to screen channels by.
        accelerator: Lightning's: ``auto``, ``cpu`` or ``gpu``.

    Raises:
        InputError: If something that was given cannot be used; nothing is written then.
    """
    validation = _Validation(
        directory=Path(run_dir),
        subjects=subjects,
        sizes=sizes,
        repeats=repeats,
        half=half,
        seed=seed,
        recipes=recipes or _baseline(),
        shared=model or {},
        folder=images,
        accelerator=accelerator,
    )
    validation.run()


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A subject that is ready: its networks, plans and frames."""

    plan: SubjectPlan
    model: Model
    embedder: Model
    module: Mapping[str, Any]
    recipe: Any
    canvas: int
    layers: Sequence[LayerPlan]


@dataclass(kw_only=True)
class _Validation:
    directory: Path
    subjects: Sequence[SubjectPlan]
    sizes: Sizes
    repeats: Repeats
    half: Literal["all", "tune", "report"]
    seed: int
    recipes: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Any]
    folder: str | None
    accelerator: str
    result: Result = field(default_factory=Result)

    def run(self) -> None:
        """Check everything, run what is missing, sum up."""
        subjects = [self._prepare(plan) for plan in self.subjects]
        if not subjects:
            raise InputError("no subjects are given; give at least one, with its layers.")
        photos = {s.plan.subject: self._photos(s) for s in subjects}
        self.directory.mkdir(parents=True, exist_ok=True)
        for s in subjects:
            self._run_subject(s, photos[s.plan.subject])
        settings = {
            "half": self.half,
            "seed": self.seed,
            "sizes": dataclasses.asdict(self.sizes),
            "subjects": [dataclasses.asdict(plan) for plan in self.subjects],
            "recipes": dict(self.recipes),
            "model": dict(self.shared),
        }
        conclude(self.result, self.directory, settings)

    def _prepare(self, plan: SubjectPlan) -> _Subject:
        """Load a subject and plan its neurons; every setting is looked at here."""
        own = {
            "subject": plan.subject,
            "embedder": plan.embedder,
            "subject_weights": plan.subject_weights,
            "embedder_weights": plan.embedder_weights,
        }
        for name, settings in self.recipes.items():
            if name == POOLED:
                raise InputError(f"no recipe can be called '{POOLED}', which is a control's name.")
            for key in {*settings, *self.shared} & {*own, "seed"}:
                raise InputError(f"'{key}' belongs to the subject, not into recipe '{name}'.")
            try:
                module = PolysemanticityModule(**{**own, **self.shared, **settings})
            except TypeError as error:
                raise InputError(
                    f"recipe '{name}' has a setting that fit has not: {error}."
                ) from error
        layers = plan_layers(
            module.subject_model,
            plan.layers,
            module.parametrization,
            module.canvas,
            self.sizes,
            self.seed,
            self.half,
        )
        return _Subject(
            plan=plan,
            model=module.subject_model,
            embedder=module.embedder_model,
            module={**own, **self.shared},
            recipe=module.recipe,
            canvas=module.canvas,
            layers=layers,
        )

    def _photos(self, s: _Subject) -> torch.Tensor | None:
        return read_photos(self.folder, s.canvas) if self.folder else None

    def _task(self, s: _Subject, recipe: str, seed: int, neurons: list[str], kind: str) -> Task:
        return Task(
            subject=s.plan.subject,
            recipe=recipe,
            seed=seed,
            directory=self.directory / "runs" / _file_name(s.plan.subject, recipe, f"{kind}{seed}"),
            neurons=neurons,
            module={**s.module, **self.recipes[recipe]},
        )

    def _run_subject(self, s: _Subject, photos: torch.Tensor | None) -> None:
        device = torch.device("cpu")
        planted = [p for plan in s.layers for p in plan.planted]
        everything = [str(p.neuron) for p in planted]
        singles = [str(p.neuron) for p in planted if p.kind == "single"]
        reference = load_or_make_reference(s.model, s.embedder, s.recipe, device)
        screened, pooled = {}, None
        if photos is not None:
            pooled = pooled_activations(s.model, s.plan.layers, photos, device)
            screened = screen_channels(s.embedder, photos, pooled, device)
        ours = next(iter(self.recipes))
        for recipe in self.recipes:
            for seed in range(self.seed, self.seed + self.repeats.seeds):
                again = seed > self.seed
                if again and recipe != ours:
                    continue
                task = self._task(s, recipe, seed, singles if again else everything, "seed")
                _logger.info("%s, recipe %s, seed %d", task.subject, recipe, seed)
                rows = run_task(task, self.accelerator)
                self.result.outcomes += outcomes_of(task, rows, s.layers, reference, screened)
                if recipe == ours and not again:
                    self.result.outcomes += pooled_outcomes(task, rows, s.layers, reference)
                    self._look_again(s, task, rows, pooled)
        self._calibrate(s, ours, reference)

    def _look_again(
        self,
        s: _Subject,
        task: Task,
        rows: Sequence[NeuronRow],
        pooled: Mapping[str, torch.Tensor] | None,
    ) -> None:
        """Compare with photos and with a second embedder."""
        name = s.plan.subject
        singles = {str(p.neuron) for plan in s.layers for p in plan.planted if p.kind == "single"}
        alone = [row for row in rows if row.neuron in singles]
        if pooled is not None:
            found = strength_of(alone, pooled)
            self.result.strength[name] = found
        if s.plan.second_embedder is not None:
            second = load_model(s.plan.second_embedder, s.plan.second_weights)
            frame = load_or_make_reference(s.model, second, s.recipe, torch.device("cpu"))
            scores = rescore(rows, second, frame, task.seed)
            both = [
                (row.score, again)
                for row, again in zip(rows, scores, strict=True)
                if row.score is not None and again is not None
            ]
            found_again = agreement([a for a, _ in both], [b for _, b in both])
            self.result.embedders[name] = Embedders(
                s.plan.embedder, s.plan.second_embedder, found_again
            )

    def _calibrate(self, s: _Subject, recipe: str, reference: Reference) -> None:
        """Score a few neurons of each layer with many seeds."""
        seeds, count = self.repeats.calibration_seeds, self.repeats.calibration_neurons
        if not seeds or not count:
            return
        names = [str(p.neuron) for plan in s.layers for p in _spread(plan, count)]
        for seed in range(self.seed, self.seed + seeds):
            task = self._task(s, recipe, seed, names, "calibration")
            _logger.info("%s, intervals, seed %d", task.subject, seed)
            rows = run_task(task, self.accelerator)
            self.result.calibrated += outcomes_of(task, rows, s.layers, reference, {})


def _file_name(*words: str) -> str:
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def _spread(plan: LayerPlan, count: int) -> list[Any]:
    """Take neurons of as many kinds as there are: a composite, a single, a composite of more."""
    by_m: dict[int, list[Any]] = {}
    for p in plan.planted:
        if p.kind in ("single", "max", "logits"):
            by_m.setdefault(p.m, []).append(p)
    order = [group[i] for i in range(count) for group in by_m.values() if i < len(group)]
    return order[:count]
