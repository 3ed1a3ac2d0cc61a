"""The command line: ``polylight fit | layers | query | report | show | validate``."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import jsonargparse

from polylight.arguments import with_switches
from polylight.errors import InputError, nearest

_USAGE = """\
usage: polylight COMMAND [arguments]

  fit --config FILE --run_dir DIR   score neurons; --help lists every setting
  layers MODEL                      list the layers of a network
  show RUN                          print the table of a run
  query RUN SQL                     ask a run in SQL; its rows are the table neurons
  report RUN [RUN …]                write a site and a PDF of a run, or compare several
  validate --config FILE --run_dir DIR
                                    score neurons of known polysemanticity
"""

Command = Callable[[Sequence[str]], int | None]
"""Takes what follows its name; gives its exit status, of which None counts as 0."""


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
            # Neurons are drawn as there is room for them; what it warns of does not matter here.
            warnings.filterwarnings("ignore", ".*`dataloader_iter`")
            # Lightning 2.6.6 asks torch's pytree in a way that torch 2.15 deprecates.
            warnings.filterwarnings("ignore", ".*LeafSpec")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _load(module: str, name: str) -> Callable[..., Any]:
    """Find a function; commands that only look at a run load no torch."""
    function: Callable[..., Any] = getattr(import_module(f"polylight.{module}"), name)
    return function


def _plain(module: str, name: str, *switches: str, positional: bool = True) -> Command:
    """A typed function as a command; what it requires by position, or all by name."""

    def command(args: Sequence[str]) -> int | None:
        status: int | None = jsonargparse.auto_cli(
            _load(module, name),
            args=list(args),
            as_positional=positional,
            prog=f"polylight {name}",
        )
        return status

    return with_switches(command, *switches) if switches else command


def _several(module: str, name: str, values: str, meaning: str) -> Command:
    """A typed function as a command that takes one or more values of an argument by position."""

    def command(args: Sequence[str]) -> int | None:
        function = _load(module, name)
        parser = jsonargparse.ArgumentParser(prog=f"polylight {name}")
        parser.add_argument(values, nargs="+", type=str, help=meaning)
        parser.add_function_arguments(function, skip={values})
        status: int | None = function(**parser.parse_args(list(args)).as_dict())
        return status

    return command


def _fit(args: Sequence[str]) -> int | None:
    """Score neurons; Lightning's own parser takes the arguments."""
    status: int | None = _load("fit", "fit")(args)
    return status


COMMANDS: dict[str, Command] = {
    "fit": _fit,
    "layers": _plain("networks", "layers"),
    "query": _plain("inspect.query", "query", "json", "csv"),
    "report": _several(
        "report.command", "report", "runs", "Directory of a run; several are compared."
    ),
    "show": _plain("inspect.show", "show", "json", "csv"),
    "validate": _plain("planted.command", "validate", positional=False),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments; by default, those of the process.

    Returns:
        The exit status: 0; 1 where only a part could be done; 2 where something that was given
        cannot be used; 143 after SIGTERM.
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
        with _without_noise():
            return command(given[1:]) or 0
    except InputError as error:
        sys.stderr.write(f"polylight: error: {error}\n")
        return 2
    except SystemExit as end:
        # Lightning's for SIGTERM has no status of its own, which would pass for success. Its name
        # is asked for rather than its class, which only comes with all of Lightning.
        if type(end).__name__ != "SIGTERMException":
            raise
        return 128 + signal.SIGTERM
