"""The command line: ``polylight fit | layers | show``."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from rich.logging import RichHandler

from polylight.allocator import keep_freed_memory
from polylight.atomic import write_atomically
from polylight.data import NeuronDataModule
from polylight.errors import InputError, nearest
from polylight.models import layers
from polylight.module import PolysemanticityModule
from polylight.monitor import TensorBoardMonitor
from polylight.pictures import contact_sheet, extreme_rows
from polylight.progress import RunProgress
from polylight.show import show
from polylight.writer import RunWriter

_USAGE = """\
usage: polylight COMMAND [arguments]

  fit --config FILE --run_dir DIR   score neurons; --help lists every setting
  layers MODEL                      list the layers of a network
  show RUN                          print the table of a run
"""


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
            kwargs["logger"] = TensorBoardLogger(config.run_dir, name="tensorboard", version="")
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
        trainer_defaults={
            "max_epochs": 1,
            "devices": 1,
            # Rows are written as they come: the run directory is the checkpoint.
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
        },
        parser_kwargs={
            "prog": "polylight fit",
            "description": "Score how polysemantic neurons are.",
        },
    )
    module: Any = cli.model
    data: Any = cli.datamodule
    trainer: Any = cli.trainer
    writer = RunWriter(cli.config.run_dir)
    writer.claim(module, data, trainer.strategy.root_device)
    config = cli.parser.dump(cli.config, skip_none=False)
    write_atomically(Path(cli.config.run_dir) / "config.yaml", lambda f: f.write(config.encode()))
    if data.pending:
        keep_freed_memory()
        trainer.callbacks.append(writer)
        trainer.fit(module, datamodule=data)
    _finish(Path(cli.config.run_dir))


def _finish(run_dir: Path) -> None:
    """Draw the picture of the run, and print its table."""
    rows = extreme_rows(run_dir, 4)
    if rows:
        contact_sheet(rows, run_dir / "neurons.png", title=run_dir.name)
    show(str(run_dir))


def _plain(function: Callable[..., None]) -> Callable[[Sequence[str]], None]:
    """A typed function as a command."""

    def command(args: Sequence[str]) -> None:
        prog = f"polylight {function.__name__}"
        jsonargparse.auto_cli(function, args=list(args), as_positional=True, prog=prog)

    return command


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "fit": fit,
    "layers": _plain(layers),
    "show": _plain(show),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments; by default, those of the process.

    Returns:
        The exit status: 0, or 2 where something that was given cannot be used.
    """
    given = list(sys.argv[1:] if args is None else args)
    handler = RichHandler(show_path=False, show_level=False, show_time=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0 if given else 2
    try:
        command = COMMANDS.get(given[0])
        if command is None:
            raise InputError(f"no command '{given[0]}'; {nearest(given[0], COMMANDS)}.")
        command(given[1:])
    except InputError as error:
        sys.stderr.write(f"polylight: error: {error}\n")
        return 2
    return 0
