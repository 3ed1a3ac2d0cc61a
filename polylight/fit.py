"""``polylight fit``: a run, from its settings to its table."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from polylight.ascent.allocator import keep_freed_memory
from polylight.callbacks.progress import RunProgress
from polylight.callbacks.tensorboard import TensorBoardMonitor
from polylight.callbacks.writer import RunWriter
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.inspect.contact_sheet import contact_sheet, extreme_rows
from polylight.inspect.show import show
from polylight.module import PolysemanticityModule
from polylight.photos.keep import keep_photos
from polylight.run.atomic import write_atomically
from polylight.run.manifest import read_manifest
from polylight.run.store import read_run

_TRAINER_DEFAULTS = {
    "max_epochs": 1,
    "devices": 1,
    # Rows are written as they come: the run directory is the checkpoint.
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "limit_val_batches": 0,
    "use_distributed_sampler": False,
}
_logger = logging.getLogger(__name__)


class _RunCLI(LightningCLI):
    """Parses what `fit` takes; the run itself is :func:`fit`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's directory, and give its parts the run's seed."""
        parser.add_argument(
            "--run_dir", type=str, required=True, help="Directory of the run; made if need be."
        )
        parser.add_lightning_class_args(TensorBoardMonitor, "tensorboard")
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the trainer, without a logger of Lightning's unless one is given."""
        config = self.config_init
        if config.trainer.logger in (None, True):
            kwargs["logger"] = False
        if config.trainer.enable_progress_bar is not False:
            kwargs["callbacks"] = [*(config.trainer.callbacks or []), RunProgress()]
        return super().instantiate_trainer(**kwargs)


def fit(args: Sequence[str]) -> None:
    """Score neurons: parse, check everything, run, print the table.

    Args:
        args: What follows ``polylight fit``.

    Raises:
        InputError: If something that was given cannot be used; nothing is written then.
    """
    cli = _RunCLI(
        PolysemanticityModule,
        NeuronDataModule,
        args=list(args),
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults=_TRAINER_DEFAULTS,
        parser_kwargs={
            "prog": "polylight fit",
            "description": "Score how polysemantic neurons are.",
        },
    )
    module: Any = cli.model
    data: Any = cli.datamodule
    trainer: Any = cli.trainer
    if trainer.precision != "32-true":
        raise InputError(
            f"trainer.precision {trainer.precision} would round images and scores too; leave "
            "it at 32-true and set --model.precision, which is the subject's."
        )
    run_dir = Path(cli.config.run_dir)
    writer = RunWriter(run_dir)
    writer.claim(module, data, trainer.strategy.root_device)
    config = cli.parser.dump(cli.config, skip_none=False)
    write_atomically(run_dir / "config.yaml", lambda file: file.write(config.encode()))
    if data.pending:
        keep_freed_memory()
        if cli.config.trainer.logger is not False:
            # Processes that share a run have a folder each.
            shard = f"shard-{data.rank:05d}" if data.rank else ""
            earlier = read_manifest(run_dir, data.rank)
            cli.config_init.tensorboard.begin(run_dir / "tensorboard" / shard, run_dir, earlier)
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
