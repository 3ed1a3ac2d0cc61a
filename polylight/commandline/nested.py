"""Commands whose arguments hold dataclasses: jsonargparse parses them."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from polylight.commandline.messages import one_line
from polylight.commandline.settings import CONFIG
from polylight.commandline.signatures import Signature
from polylight.commandline.spelling import expand_home, expand_options, files_first, join_signed
from polylight.errors import InputError


def parse_nested(
    command: str, function: Callable[..., Any], signature: Signature, args: Sequence[str]
) -> dict[str, Any]:
    """Parse the arguments of a command, all of them by name or from a file.

    Args:
        command: Its name, for messages.
        function: What takes the arguments; its types say how they are read.
        signature: Of the function.
        args: What follows the command's name.

    Returns:
        Every argument of the function, by name.

    Raises:
        InputError: If an argument, or a setting in a file, cannot be used.
        SystemExit: Of status 0, after the help that was asked for.
    """
    parser = ArgumentParser(
        prog=f"polylight {command}",
        description=signature.summary,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help=CONFIG.help)
    parser.add_function_arguments(function)
    spelt = files_first(expand_options(join_signed(args)), ["--config"])
    try:
        given = expand_home(parser.parse_args(spelt))
    except argparse.ArgumentError as error:
        names = [option.removeprefix("--") for option in parser._option_string_actions]
        raise InputError(one_line(command, str(error), names)) from error
    values = parser.instantiate_classes(given)
    del values["config"]
    named: dict[str, Any] = vars(values)
    return named
