"""The one way that a run goes, whoever asks for it: open its directory, let its neurons climb."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from polylight.ascent.allocator import keep_freed_memory
from polylight.callbacks.scoring import RowSink, ScoreNeurons
from polylight.callbacks.writer import RunWriter
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.module import PolysemanticityModule
from polylight.run.manifest import manifest_path
from polylight.run.session import RunSession

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 1,
    "devices": 1,
    # Rows are written as they come: the run directory is the checkpoint.
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
    "use_distributed_sampler": False,
}
"""What Lightning's trainer is given for every run."""


def open_session(
    module: PolysemanticityModule, data: NeuronDataModule, run_dir: Path, device: torch.device
) -> RunSession:
    """Select the neurons and open the run; nothing is touched where that cannot be.

    Args:
        module: Cuts the subject where the neurons are.
        data: Its neurons are selected, and those that are finished already are left out.
        run_dir: Directory of the run; that of the same settings is continued.
        device: Where the run will work.

    Returns:
        The session, to be closed.

    Raises:
        InputError: If the neurons cannot be resolved, the embedder cannot embed, or the directory
            cannot be used.
    """
    data.select(module.cut)
    manifest = module.manifest(device)
    # A name that cannot be is refused by the session.
    if not os.path.isfile(manifest_path(run_dir, data.rank)):  # noqa: PTH113
        # What fails here must not leave a directory that belongs to other settings.
        module.build_views()
    session = RunSession(run_dir, manifest, [str(n) for n in data.neurons], data.rank)
    data.skip(session.finished)
    module.resume(session.earlier.device.get("pool_size"))
    return session


def score_neurons(
    trainer: Any,
    module: PolysemanticityModule,
    data: NeuronDataModule,
    session: RunSession,
    sinks: Sequence[RowSink] = (),
) -> None:
    """Let the trainer run the neurons that are not finished, and write what comes of them.

    Args:
        trainer: Lightning's.
        module: Of the run.
        data: Of the run.
        session: Where rows go.
        sinks: What else takes the rows, once they are on the disk.
    """
    keep_freed_memory()
    writer = RunWriter(session, module.watch)
    trainer.callbacks[:0] = [ScoreNeurons([writer, *sinks]), writer]
    try:
        trainer.fit(module, datamodule=data)
    except (MisconfigurationException, ModuleNotFoundError) as error:
        # What Lightning, or a callback of the user's, finds out only now.
        said = " ".join(str(error).split())
        raise InputError(f"the trainer cannot run as its settings ask: {said}") from error
