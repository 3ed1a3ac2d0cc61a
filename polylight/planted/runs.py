"""Score planted neurons by the ordinary path: a run for each subject, recipe and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer

from polylight.callbacks.progress import RunProgress
from polylight.data import NeuronDataModule
from polylight.embedding.reference import Reference
from polylight.errors import InputError
from polylight.fit import open_session, score_neurons
from polylight.module import PolysemanticityModule
from polylight.run.schema import NeuronRow
from polylight.run.store import read_rows
from polylight.scoring.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run: the neurons of a subject, made by one recipe with one seed.

    Attributes:
        subject: Name of the subject.
        recipe: Name of the recipe.
        seed: Seed of the run.
        directory: Where it goes; one that is there already is continued.
        neurons: The neurons as text.
        module: Arguments of the module: networks, weights and the settings of the recipe.
        reference: What its images are compared by.
        scorer: How its images become a score.
    """

    subject: str
    recipe: str
    seed: int
    directory: Path
    neurons: Sequence[str]
    module: Mapping[str, Any]
    reference: Reference
    scorer: Scorer


def run_task(task: Task, accelerator: str) -> list[NeuronRow]:
    """Score the neurons of a task that are not finished yet.

    Args:
        task: What to score.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu``.

    Returns:
        The rows of its neurons, in the order of the task.

    Raises:
        InputError: If the directory holds another run, a setting cannot be used, or the run was
            stopped before all neurons were through.
    """
    module = PolysemanticityModule(**{**task.module, "seed": task.seed})
    data = NeuronDataModule(list(task.neurons))
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[RunProgress()],
    )
    device = trainer.strategy.root_device
    with open_session(module, data, task.directory, device) as session:
        if data.pending:
            score_neurons(trainer, module, data, session)
    rows = {row.neuron: row for row in read_rows(task.directory)}
    missing = [name for name in task.neurons if name not in rows]
    if missing:
        raise InputError(
            f"{task.directory} was stopped with {len(missing)} neurons to go; the same command "
            "continues."
        )
    return [rows[name] for name in task.neurons]
