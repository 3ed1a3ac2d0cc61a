"""``polylight fit``: a run, from its settings to its table."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from polylight.ascent.allocator import keep_freed_memory
from polylight.callbacks.progress import RunProgress
from polylight.callbacks.scoring import ScoreNeurons
from polylight.callbacks.tensorboard import TensorBoardMonitor
from polylight.callbacks.writer import RunWriter
from polylight.data import NeuronDataModule
from polylight.errors import InputError
from polylight.inspect.contact_sheet import contact_sheet, extreme_rows
from polylight.inspect.show import show
from polylight.module import PolysemanticityModule
from polylight.photos.keep import keep_photos
from polylight.run.session import RunSession
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
        """Build the trainer; TensorBoard under the run's directory unless another is given."""
        config = self.config_init
        if config.trainer.logger in (None, True):
            # save_dir is made when the first event is written, not here.
            # Processes that share a run have a folder each; the monitor writes the hparams.
            rank = config.data.rank
            kwargs["logger"] = TensorBoardLogger(
                config.run_dir,
                name="tensorboard",
                version=f"shard-{rank:05d}" if rank else "",
                default_hp_metric=False,
            )
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
    device = trainer.strategy.root_device
    with open_session(module, data, Path(cli.config.run_dir), device) as session:
        config = cli.parser.dump(cli.config, skip_none=False)
        session.write_file("config.yaml", config.encode())
        if data.pending:
            score_neurons(trainer, module, data, session)
        else:
            _logger.info("all %d neurons are finished already", len(data.neurons))
        _show_results(session.run_dir)
        if not session.is_complete:
            left = sum(str(neuron) not in session.finished for neuron in data.neurons)
            _logger.info("stopped with %d neurons to go; the same command continues", left)
        elif data.photos is not None:
            _show_photos(module, data, session, device)


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
    trainer: Any, module: PolysemanticityModule, data: NeuronDataModule, session: RunSession
) -> None:
    """Let the trainer run the neurons that are not finished, and write what comes of them.

    Args:
        trainer: Lightning's, with or without a :class:`TensorBoardMonitor` among its callbacks.
        module: Of the run.
        data: Of the run.
        session: Where rows go.
    """
    keep_freed_memory()
    writer = RunWriter(session, module.watch)
    monitors = [c for c in trainer.callbacks if isinstance(c, TensorBoardMonitor)]
    for monitor in monitors:
        monitor.begin(session)
    # Rows are on the disk before anything is drawn of them.
    trainer.callbacks[:0] = [ScoreNeurons([writer, *monitors]), writer]
    trainer.fit(module, datamodule=data)


def _show_results(run_dir: Path) -> None:
    """Draw the picture of the run, and print its table."""
    if not read_run(run_dir, columns=["neuron"]).num_rows:
        return
    rows = extreme_rows(run_dir, 4)
    if rows:
        contact_sheet(rows, run_dir / "neurons.png", title=run_dir.name)
    show(str(run_dir))


def _show_photos(
    module: PolysemanticityModule,
    data: NeuronDataModule,
    session: RunSession,
    device: torch.device,
) -> None:
    """Show photos to the neurons."""
    if data.photos is None or module.subject is None:
        return
    size = module.parametrization.size
    try:
        keep_photos(
            data.photos,
            session.run_dir,
            session.rank,
            data.neurons,
            module.subject,
            module.embedder_model,
            size,
            device,
        )
    except KeyboardInterrupt:
        _logger.info("stopped while photos were shown; the same command goes on with them")
        # As Lightning ends a run that is stopped.
        sys.exit(1)
