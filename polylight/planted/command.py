"""``polylight validate``: score neurons of known polysemanticity, and say how well it went."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Trainer
from rich.console import Console

from polylight.callbacks.progress import RunProgress
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.planted.collect import (
    Run,
    first_outcomes,
    pooled_outcomes,
    run_outcomes,
    second_scores,
    view_outcomes,
)
from polylight.planted.neurons import PlantedNeuron, Sizes, Split
from polylight.planted.outcome import PRIMARY, Outcome
from polylight.planted.plan import LayerPlan, Repeats, SubjectPlan
from polylight.planted.prepare import PreparedSubject, file_name, prepare
from polylight.reference import load_or_make_reference
from polylight.run.atomic import check_writable, write_atomically
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows
from polylight.session import TRAINER_DEFAULTS, open_session, score_neurons

_logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")
RESAMPLES = 2000
"""Of each bootstrap."""


def validate(
    run_dir: str,
    subjects: list[SubjectPlan],
    sizes: Sizes = Sizes(),  # noqa: B008
    repeats: Repeats = Repeats(),  # noqa: B008
    split: Split = "test",
    seed: int = 0,
    conditions: dict[str, dict[str, Any]] | None = None,
    model: dict[str, Any] | None = None,
    image_counts: list[int] = [],  # noqa: B006
    images: str | None = None,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
) -> None:
    """Score neurons of known polysemanticity, and say how well the score tells them.

    Writes ``validation.json``, ``validation.png`` and ``validation.svg`` into the directory, and a
    run for each subject, condition and seed beside them. The same command continues one that was
    cut off.

    Args:
        run_dir: Directory of the validation; made if need be.
        subjects: Networks, and the layers whose channels are used.
        sizes: How many neurons of each kind a layer gives.
        repeats: What is scored again, with other seeds.
        split: Which channels are used: ``test``, the odd ones; settings are tuned on the even
            ones, ``tune``; or ``all``.
        seed: Of the choice of neurons, and of the runs.
        conditions: By name, settings of the model that differ; null for ours and independent
            images. The first is the one that is validated.
        model: Settings of the model that all conditions share; null for those that ``polylight
            fit`` has where nothing is set.
        image_counts: Numbers of images: neurons are scored also by only their first so many.
        images: Folder of photos, to compare with and to screen channels by.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu`` or ``mps``.

    Raises:
        InputError: If something that was given cannot be used; nothing is written then.
    """
    try:
        # What is missing is said before any work starts.
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"a validation needs the package {error.name}; pip install 'polylight[validate]'"
        ) from error
    if any(count < 1 for count in image_counts):
        raise InputError(f"image_counts are at least 1 each, got {image_counts}.")
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    chosen = conditions or {PRIMARY: {}, "independent": {"repulsion": 0.0}}
    prepared = prepare(subjects, chosen, model or {}, sizes, seed, split, images, device)
    directory = Path(run_dir)
    check_writable(directory)
    found = _Found()
    for subject in prepared:
        _Validation(directory, subject, repeats, seed, image_counts, accelerator, found).run()
    settings = {
        "split": split,
        "seed": seed,
        "sizes": dataclasses.asdict(sizes),
        "repeats": dataclasses.asdict(repeats),
        "photos": prepared[0].photos.count if prepared[0].photos else 0,
        "subjects": [dataclasses.asdict(plan) for plan in subjects],
        "conditions": chosen,
        "image_counts": image_counts,
        "model": model or {},
    }
    _write(directory, settings, found)


@dataclass(kw_only=True)
class _Found:
    """What a validation has found.

    Attributes:
        outcomes: Of every planted neuron, condition and seed; the first is of our condition.
        shorter: Of the first images of neurons alone, a condition for each number of images.
        calibrated: Of the neurons that were scored with many seeds.
        embedders: By subject, both embedders and how far their scores agree.
        photos: By subject, how its channels' images compare with photos.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    shorter: list[Outcome] = field(default_factory=list)
    calibrated: list[Outcome] = field(default_factory=list)
    embedders: dict[str, Any] = field(default_factory=dict)
    photos: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Validation:
    """Runs what is missing of a subject, and collects what came of it."""

    directory: Path
    subject: PreparedSubject
    repeats: Repeats
    seed: int
    image_counts: Sequence[int]
    accelerator: str
    found: _Found

    def run(self) -> None:
        """Score under every condition; under ours also again, and in other ways."""
        planted = [p for layer in self.subject.layers for p in layer.planted]
        everything = [str(p.neuron) for p in planted]
        singles = [str(p.neuron) for p in planted if p.kind == "single"]
        ours, *others = self.subject.conditions
        run, rows = self._score(ours, self.seed, everything)
        self.found.outcomes += [*run_outcomes(run, rows), *view_outcomes(run, rows)]
        self.found.outcomes += pooled_outcomes(run, rows)
        for count in self.image_counts:
            self.found.shorter += first_outcomes(run, rows, count)
        self._compare(run, [row for row in rows if row.neuron in singles and row.status == "ok"])
        for seed in range(self.seed + 1, self.seed + self.repeats.seeds):
            run, rows = self._score(ours, seed, singles)
            self.found.outcomes += [*run_outcomes(run, rows), *view_outcomes(run, rows)]
        for condition in others:
            self.found.outcomes += run_outcomes(*self._score(condition, self.seed, everything))
        few = [
            str(p.neuron)
            for layer in self.subject.layers
            for p in _of_every_m(layer, self.repeats.calibration_neurons)
        ]
        seeds = self.repeats.calibration_seeds if few else 0
        for seed in range(self.seed, self.seed + seeds):
            run, rows = self._score(ours, seed, few, "calibration")
            self.found.calibrated += run_outcomes(run, rows)

    def _score(
        self, condition: str, seed: int, neurons: list[str], kind: str = "seed"
    ) -> tuple[Run, list[NeuronRow]]:
        s, setting = self.subject, self.subject.conditions[condition]
        name = file_name(s.plan.subject, condition, f"{kind}{seed}")
        run = Run(
            subject=s.plan.subject,
            condition=condition,
            seed=seed,
            directory=self.directory / "runs" / name,
            neurons=neurons,
            arguments=setting.arguments,
            reference=load_or_make_reference(s.model, s.embedder, setting.frame, _CPU),
            scorer=setting.scorer,
            layers=s.layers,
            screened=s.photos.screened if s.photos else {},
        )
        _logger.info("%s, condition %s, %s %d", run.subject, condition, kind, seed)
        return run, finish_run(run, self.accelerator)

    def _compare(self, run: Run, singles: Sequence[NeuronRow]) -> None:
        """Compare single channels with photos, and with what a second embedder gives."""
        from polylight.planted.summary import agreement, compare_with_photos

        s, name = self.subject, self.subject.plan.subject
        if s.photos is not None and singles:
            self.found.photos[name] = compare_with_photos(singles, s.photos.pooled)
        if s.second_embedder is not None:
            frame = s.conditions[run.condition].frame
            reference = load_or_make_reference(s.model, s.second_embedder, frame, _CPU)
            second = second_scores(singles, s.second_embedder, reference, run.scorer, run.seed)
            first = [row.score for row in singles if row.score is not None]
            names = {"first": s.embedder.name, "second": s.second_embedder.name}
            self.found.embedders[name] = names | agreement(first, second)


def _of_every_m(layer: LayerPlan, count: int) -> list[PlantedNeuron]:
    """Take neurons of as many numbers of features as there are, in turn."""
    by_m: dict[int, list[PlantedNeuron]] = {}
    for p in layer.planted:
        if p.kind in ("single", "max", "logits"):
            by_m.setdefault(p.m, []).append(p)
    order = [group[i] for i in range(count) for group in by_m.values() if i < len(group)]
    return order[:count]


def finish_run(run: Run, accelerator: str) -> list[NeuronRow]:
    """Score the neurons of a run that are not finished yet.

    Args:
        run: What to score.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu``.

    Returns:
        The rows of its neurons, in their order.

    Raises:
        InputError: If the directory holds another run, a setting cannot be used, or the run was
            stopped before all neurons were through.
    """
    module = PolysemanticityModule(**{**run.arguments, "seed": run.seed})
    data = NeuronDataModule(list(run.neurons))
    trainer = Trainer(
        **TRAINER_DEFAULTS, accelerator=accelerator, logger=False, callbacks=[RunProgress()]
    )
    with open_session(module, data, run.directory, trainer.strategy.root_device) as session:
        if data.pending:
            score_neurons(trainer, module, data, session)
    rows = {row.neuron: row for row in read_rows(run.directory)}
    missing = [name for name in run.neurons if name not in rows]
    if missing:
        raise InputError(
            f"{run.directory} was stopped with {len(missing)} neurons to go; the same command "
            "continues."
        )
    return [rows[name] for name in run.neurons]


def _write(directory: Path, settings: dict[str, Any], found: _Found) -> None:
    """Sum a validation up, write its document and figure, and print its tables."""
    from polylight.planted.plot import plot_validation
    from polylight.planted.summary import TARGETS, as_json, calibration, check_targets, summarise
    from polylight.planted.table import print_tables

    scopes = summarise(found.outcomes, resamples=RESAMPLES)
    shorter = summarise(found.shorter, resamples=RESAMPLES)
    document = as_json(
        {
            **settings,
            "scopes": scopes,
            "targets": check_targets(scopes, TARGETS),
            "by_image_count": [scope for scope in shorter if scope.subject is None],
            "reliability": {
                "embedders": found.embedders,
                "calibration": calibration(found.calibrated),
                "photos": found.photos,
            },
            "outcomes": found.outcomes,
        }
    )
    path = directory / "validation.json"
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    plot_validation(found.outcomes, directory / "validation.png")
    console = Console()
    print_tables(document, console)
    console.print(f"{path}, and validation.png beside it", soft_wrap=True)
