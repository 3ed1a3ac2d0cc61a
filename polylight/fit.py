"""``polylight fit``: a run, from its settings to its table."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polylight.callbacks.tensorboard import TensorBoardMonitor
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
from polylight.session import open_session, score_neurons

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
            monitors = _start_monitors(trainer, session, show=given.tensorboard)
            score_neurons(trainer, module, data, session, monitors)
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


def _start_monitors(trainer: Any, session: RunSession, *, show: bool) -> list[TensorBoardMonitor]:
    """Let the trainer's monitors begin; they are what takes the rows next."""
    monitors = [c for c in trainer.callbacks if isinstance(c, TensorBoardMonitor)]
    if show:
        # Processes that share a run have a folder each.
        shard = f"shard-{session.rank:05d}" if session.rank else ""
        for monitor in monitors:
            folder = session.run_dir / "tensorboard" / shard
            monitor.begin(folder, session.run_dir, session.earlier)
    return monitors


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
