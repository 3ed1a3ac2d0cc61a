"""``polylight fit``: a run, from its settings to its table."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polylight.ascent.allocator import keep_freed_memory
from polylight.callbacks.scoring import ScoreNeurons
from polylight.callbacks.tensorboard import TensorBoardMonitor
from polylight.callbacks.writer import RunWriter
from polylight.commandline.fit_parser import parse_fit
from polylight.data import NeuronDataModule
from polylight.inspect.contact_sheet import contact_sheet, extreme_rows
from polylight.inspect.show import show
from polylight.module import PolysemanticityModule
from polylight.photos.keep import keep_photos
from polylight.report.command import check_packages, report
from polylight.run.reported import read_reported_score
from polylight.run.session import RunSession
from polylight.run.store import read_run

_logger = logging.getLogger(__name__)


def fit(args: Sequence[str]) -> None:
    """Score neurons: parse, check everything, run, print the table.

    Args:
        args: What follows ``polylight fit``.

    Raises:
        InputError: If something that was given cannot be used; nothing is written then.
    """
    given = parse_fit(args)
    module, data, trainer = given.module, given.data, given.trainer
    if given.report:
        check_packages()
    device = trainer.strategy.root_device
    with open_session(module, data, given.run_dir, device) as session:
        session.write_file("config.yaml", given.config.encode())
        if data.pending:
            score_neurons(trainer, module, data, session, show=given.tensorboard)
        else:
            _logger.info("all %d neurons are finished already", len(data.neurons))
        _show_results(session.run_dir)
        if not session.is_complete:
            left = sum(str(neuron) not in session.finished for neuron in data.neurons)
            _logger.info("stopped with %d neurons to go; the same command continues", left)
            return
        _show_photos(module, data, session, device)
    if given.report:
        report([str(given.run_dir)])


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
        InputError: If the neurons cannot be resolved, or the directory cannot be used.
    """
    data.select(module.cut)
    session = RunSession(
        run_dir, module.manifest(device), [str(n) for n in data.neurons], data.rank
    )
    data.skip(session.finished)
    module.resume(session.earlier.device.get("pool_size"))
    return session


def score_neurons(
    trainer: Any,
    module: PolysemanticityModule,
    data: NeuronDataModule,
    session: RunSession,
    *,
    show: bool = False,
) -> None:
    """Let the trainer run the neurons that are not finished, and write what comes of them.

    Args:
        trainer: Lightning's.
        module: Of the run.
        data: Of the run.
        session: Where rows go.
        show: Whether a :class:`TensorBoardMonitor` among the trainer's callbacks shows the run.
    """
    keep_freed_memory()
    writer = RunWriter(session, module.watch)
    monitors = [c for c in trainer.callbacks if isinstance(c, TensorBoardMonitor)]
    if show:
        # Processes that share a run have a folder each.
        shard = f"shard-{session.rank:05d}" if session.rank else ""
        for monitor in monitors:
            folder = session.run_dir / "tensorboard" / shard
            monitor.begin(folder, session.run_dir, session.earlier)
    # Rows are on the disk before anything is drawn of them.
    trainer.callbacks[:0] = [ScoreNeurons([writer, *monitors]), writer]
    trainer.fit(module, datamodule=data)


def _show_results(run_dir: Path) -> None:
    """Draw the picture of the run, and print its table."""
    if not read_run(run_dir, columns=["neuron"]).num_rows:
        return
    score = read_reported_score(run_dir)
    rows = extreme_rows(run_dir, 4, score)
    if rows:
        contact_sheet(rows, run_dir / "neurons.png", title=run_dir.name, score=score)
    show(str(run_dir))


def _show_photos(
    module: PolysemanticityModule,
    data: NeuronDataModule,
    session: RunSession,
    device: torch.device,
) -> None:
    """Show photos to the neurons, where there are some."""
    if data.photos is None or module.subject is None:
        return
    try:
        keep_photos(
            data.photos,
            session.run_dir,
            session.rank,
            data.neurons,
            module.subject,
            module.embedder_model,
            module.parametrization.size,
            device,
            plain=module.is_plain,
        )
    except KeyboardInterrupt:
        _logger.info("stopped while photos were shown; the same command goes on with them")
        # As Lightning ends a run that is stopped.
        sys.exit(1)
