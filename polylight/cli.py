"""The command line: ``polylight check | fit | layers | query | report | show | validate``."""

import errno
import gc
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from polylight import __version__
from polylight.errors import InputError, nearest
from polylight.noise import without_noise

_USAGE = """\
usage: polylight COMMAND [arguments]

  fit --config FILE --run_dir DIR   score neurons
  check MODEL                       try which layers of a network can be scored
  layers MODEL                      list the layers of a network
  show RUN                          print the table of a run
  query RUN SQL                     ask a run in SQL; its rows are the table neurons
  report RUN [RUN …]                write a site and a PDF of a run, or compare several
  validate --config FILE --run_dir DIR
                                    score neurons of known polysemanticity

polylight COMMAND --help lists the settings of a command; polylight --version
"""

# What a file system refuses: a full disk, a name that is too long, what may not be written.
_REFUSED = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
}

Command = Callable[[Sequence[str]], int | None]
"""Takes what follows its name; gives its exit status, of which None counts as 0."""


def _load(module: str, name: str) -> Callable[..., Any]:
    """Find a function; what it imports stays, so no garbage is looked for in it, now or later."""
    path = f"polylight.{module}"
    if path not in sys.modules and gc.isenabled():
        gc.disable()
        try:
            import_module(path)
        finally:
            gc.freeze()
            gc.enable()
    function: Callable[..., Any] = getattr(import_module(path), name)
    return function


def _plain(module: str, name: str, function: str = "") -> Command:
    """A typed function as a command: what it requires by position, the rest by name."""
    function = function or name

    def command(args: Sequence[str]) -> int | None:
        from polylight.commandline.plain import parse_plain
        from polylight.commandline.signatures import read_signature

        values = parse_plain(name, read_signature(f"polylight.{module}", function), args)
        status: int | None = _load(module, function)(**values)
        return status

    return command


def _fit(args: Sequence[str]) -> int | None:
    """Score neurons; Lightning's own parser takes the arguments."""
    from polylight.commandline.settings import check_names, fit_help, fit_settings

    if _asks_for_help(args):
        sys.stdout.write(f"{fit_help(_width())}\n")
        return 0
    args = _all_help(args)
    check_names("fit", args, fit_settings())
    status: int | None = _load("fit", "fit")(args)
    return status


def _validate(args: Sequence[str]) -> int | None:
    """Score neurons of known polysemanticity; jsonargparse takes the nested arguments."""
    from polylight.commandline.settings import check_names, function_help
    from polylight.commandline.signatures import read_signature

    signature = read_signature("polylight.planted.command", "validate")
    if _asks_for_help(args):
        sys.stdout.write(f"{function_help('validate', signature, _width())}\n")
        return 0
    args = _all_help(args)
    check_names("validate", args, [p.name for p in signature.parameters])
    function = _load("planted.command", "validate")
    values = _load("commandline.nested", "parse_nested")("validate", function, signature, args)
    status: int | None = function(**values)
    return status


def _asks_for_help(args: Sequence[str]) -> bool:
    """Whether the short help is asked for."""
    return "-h" in args or "--help" in args


def _all_help(args: Sequence[str]) -> list[str]:
    """Ask the parser itself for its help, where all of it is asked for."""
    return ["--help"] if "--help-all" in args else list(args)


def _width() -> int:
    """Width of the terminal, as far as lines of text stay legible."""
    from shutil import get_terminal_size

    return min(get_terminal_size().columns, 110)


COMMANDS: dict[str, Command] = {
    "check": _plain("checking", "check", "print_check"),
    "fit": _fit,
    "layers": _plain("networks.layers", "layers"),
    "query": _plain("inspect.query", "query"),
    "report": _plain("report.command", "report"),
    "show": _plain("inspect.show", "show"),
    "validate": _validate,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments; by default, those of the process.

    Returns:
        The exit status: 0; 1 where only a part could be done, as on a full disk; 2 where something
        that was given cannot be used; 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        # A pipe on Windows has a code page, and no lines of tables in it.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    # What Apple's GPUs cannot do runs on the CPU; torch reads this when it is loaded.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("polylight").setLevel(logging.INFO)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0 if given else 2
    if given[0] == "--version":
        sys.stdout.write(f"polylight {__version__}\n")
        return 0
    try:
        command = COMMANDS.get(given[0])
        if command is None:
            raise InputError(f"no command '{given[0]}'; {nearest(given[0], COMMANDS)}.")
        with without_noise():
            return command(given[1:]) or 0
    except InputError as error:
        sys.stderr.write(f"polylight: error: {error}\n")
        return 2
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        where = f": {error.filename}" if error.filename else ""
        sys.stderr.write(
            f"polylight: error: {error.strerror}{where}. What is written stays; once there is a "
            "remedy, the same command goes on.\n"
        )
        return 1
    except SystemExit as end:
        # Lightning's for SIGTERM has no status of its own, which would pass for success. Its name
        # is asked for rather than its class, which only comes with all of Lightning.
        if type(end).__name__ != "SIGTERMException":
            raise
        return 128 + signal.SIGTERM
    finally:
        # What is frozen is never freed, of which bindings complain when the process ends.
        gc.unfreeze()
