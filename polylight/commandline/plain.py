"""Commands that are plain functions: a small parser from the function's signature."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from polylight.commandline.messages import unknown_option
from polylight.commandline.signatures import REQUIRED, Parameter, Signature
from polylight.commandline.spelling import collect_lists, expand_home, join_signed, set_switches
from polylight.errors import InputError


def parse_plain(command: str, signature: Signature, args: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command: what it requires by position, the rest by name.

    Args:
        command: Its name, for messages.
        signature: What its function takes: texts, integers, truth values, lists of texts and
            mappings, any of which may be left out.
        args: What follows the command's name.

    Returns:
        Every argument of the function, by name.

    Raises:
        InputError: If there is no such option, or a value is missing or cannot be used.
        SystemExit: Of status 0, after the help that was asked for.
    """
    options = [p for p in signature.parameters if p.default is not REQUIRED]
    switches = [p.name for p in options if p.kind == "bool"]
    lists = [p.name for p in options if p.kind == "list[str]"]
    parser = _Parser(
        prog=f"polylight {command}",
        description=" ".join([signature.summary, signature.details]),
        allow_abbrev=False,
    )
    for parameter in signature.parameters:
        _add(parser, parameter)
    spelt = collect_lists(join_signed(set_switches(args, switches)), lists)
    given, unknown = parser.parse_known_intermixed_args(spelt)
    if unknown:
        raise InputError(unknown_option(command, unknown[0], [p.name for p in options]))
    values: dict[str, Any] = expand_home(vars(given))
    return values


class _Parser(argparse.ArgumentParser):
    """Refuses what it cannot parse in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        said = said.replace("the following arguments are required:", f"{self.prog} needs")
        raise InputError(f"{said}; see `{self.prog} --help`.")


def _add(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    """Add one parameter of a function."""
    text = parameter.help.replace("%", "%%")
    is_list = parameter.kind.startswith("list")
    if parameter.default is REQUIRED:
        parser.add_argument(parameter.name, nargs="+" if is_list else None, help=text)
        return
    is_switch = parameter.kind == "bool"
    parser.add_argument(
        f"--{parameter.name}",
        type=_KINDS[parameter.kind],
        default=parameter.default,
        nargs="?" if is_switch else None,
        metavar="true|false" if is_switch else "VALUE …" if is_list else "VALUE",
        help=text,
    )


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, not '{text}'") from None


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, not '{text}'")
    return text == "true"


def _list(text: str) -> list[str]:
    import json

    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise argparse.ArgumentTypeError(f"expected values or a list in JSON, not '{text}'")
    return [str(item) for item in found]


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"expected options such as {{name: value}}, not '{text}'")
    return found


_KINDS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": _int,
    "bool": _bool,
    "list[str]": _list,
    "dict[str, Any]": _mapping,
}
