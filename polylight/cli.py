"""The command line: ``polylight fit | layers | query | show | validate``."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from polylight.allocator import keep_freed_memory
from polylight.atomic import write_atomically
from polylight.data import NeuronDataModule
from polylight.errors import InputError, nearest
from polylight.models import layers
from polylight.module import PolysemanticityModule
from polylight.monitor import TensorBoardMonitor
from polylight.pictures import contact_sheet, extreme_rows
from polylight.progress import RunProgress
from polylight.query import query
from polylight.show import show
from polylight.store import read_run
from polylight.switches import with_switches
from polylight.validate.command import validate
from polylight.writer import RunWriter

_USAGE = """\
usage: polylight COMMAND [arguments]

  fit --config FILE --run_dir DIR   score neurons; --help lists every setting
  layers MODEL                      list the layers of a network
  show RUN                          print the table of a run
  query RUN SQL                     ask a run in SQL; its rows are the table neurons
  validate --config FILE --run_dir DIR
                                    score neurons of known polysemanticity
"""


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
    with _without_noise():
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
            trainer.callbacks.append(writer)
            trainer.fit(module, datamodule=data)
        else:
            _logger.info("all %d neurons are finished already", len(data.neurons))
    _finish(run_dir)
    if data.queue is not None and not data.queue.drained:
        left = len(data.pending) - module.engine.neurons
        _logger.info("stopped with %d neurons to go; the same command continues", left)


def _finish(run_dir: Path) -> None:
    """Draw the picture of the run, and print its table."""
    if not read_run(run_dir, columns=["neuron"]).num_rows:
        return
    rows = extreme_rows(run_dir, 4)
    if rows:
        contact_sheet(rows, run_dir / "neurons.png", title=run_dir.name)
    show(str(run_dir))


@contextmanager
def _without_noise() -> Iterator[None]:
    """Keep what Lightning says of every training off the terminal; its warnings stay.

    Two warnings go too: that networks are in eval mode, which they have to be, and that arguments
    are given to its parser as well as to the process.
    """
    # What they report on rank 0 in passing; a profiler's report, say, comes from its own logger.
    names = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed")
    loggers = [logging.getLogger(f"lightning.{name}") for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            # Lightning 2.6.6 asks torch's pytree in a way that torch 2.15 deprecates.
            warnings.filterwarnings("ignore", ".*LeafSpec")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _plain(
    function: Callable[..., None], *, positional: bool = True
) -> Callable[[Sequence[str]], None]:
    """A typed function as a command; what it requires by position, or all by name."""

    def command(args: Sequence[str]) -> None:
        prog = f"polylight {function.__name__}"
        with _without_noise():
            jsonargparse.auto_cli(function, args=list(args), as_positional=positional, prog=prog)

    return command


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "fit": fit,
    "layers": _plain(layers),
    "query": with_switches(_plain(query), "json", "csv"),
    "show": with_switches(_plain(show), "json", "csv"),
    "validate": _plain(validate, positional=False),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments; by default, those of the process.

    Returns:
        The exit status: 0; 2 where something that was given cannot be used; 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("polylight").setLevel(logging.INFO)
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
    except SIGTERMException:
        # A SystemExit without a status, which would pass for success.
        return 128 + signal.SIGTERM
    return 0
