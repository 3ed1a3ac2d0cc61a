"""``polylight fit``: a run, from its settings to its table."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polylight.ascent.allocator import keep_freed_memory
from polylight.callbacks.writer import RunWriter
from polylight.commandline.fit_parser import parse_fit
from polylight.inspect.contact_sheet import contact_sheet, extreme_rows
from polylight.inspect.show import show
from polylight.photos.keep import keep_photos
from polylight.run.atomic import write_atomically
from polylight.run.store import read_run

_logger = logging.getLogger(__name__)


def fit(args: Sequence[str]) -> None:
    """Score neurons: parse, check everything, run, print the table.

    Args:
        args: What follows ``polylight fit``.

    Raises:
        InputError: If something that was given cannot be used; nothing is written then.
    """
    parsed = parse_fit(args)
    run_dir = parsed.run_dir
    module: Any = parsed.module
    data: Any = parsed.data
    trainer: Any = parsed.trainer
    writer = RunWriter(run_dir)
    writer.claim(module, data, trainer.strategy.root_device)
    write_atomically(run_dir / "config.yaml", lambda file: file.write(parsed.config.encode()))
    if data.pending:
        keep_freed_memory()
        trainer.callbacks.append(writer)
        trainer.fit(module, datamodule=data)
    else:
        writer.teardown(trainer, module, "fit")
        _logger.info("all %d neurons are finished already", len(data.neurons))
    _finish(run_dir)
    if data.queue is not None and not data.queue.drained:
        left = len(data.pending) - module.engine.neurons
        _logger.info("stopped with %d neurons to go; the same command continues", left)
        return
    try:
        keep_photos(module, data, run_dir, trainer.strategy.root_device)
    except KeyboardInterrupt:
        _logger.info("stopped while photos were shown; the same command goes on with them")
        # As Lightning ends a run that is stopped.
        sys.exit(1)


def _finish(run_dir: Path) -> None:
    """Draw the picture of the run, and print its table."""
    if not read_run(run_dir, columns=["neuron"]).num_rows:
        return
    rows = extreme_rows(run_dir, 4)
    if rows:
        contact_sheet(rows, run_dir / "neurons.png", title=run_dir.name)
    show(str(run_dir))
