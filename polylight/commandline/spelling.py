"""Command lines as people write them, in the spelling that a parser reads."""

import json
import os
import re
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from polylight.errors import InputError

_HOME = ("~/", f"~{os.sep}")
_OUTSIDE_BRACKETS = re.compile(r",(?![^(]*\))")


def join_signed(args: Sequence[str]) -> list[str]:
    """Join an option with a value that begins with a minus, which a parser takes for an option.

    ``--sort -score`` becomes ``--sort=-score``; the only option of one minus and a word is ``-h``.
    """
    spelt: list[str] = []
    for arg in args:
        if _is_signed(arg) and spelt and _wants_value(spelt[-1]):
            spelt[-1] += f"={arg}"
        else:
            spelt.append(arg)
    return spelt


def set_switches(args: Sequence[str], switches: Collection[str]) -> list[str]:
    """Give switches that stand alone their value: ``--json`` becomes ``--json=true``.

    Args:
        args: The arguments.
        switches: Names of the boolean options, without ``--``.
    """
    alone = {f"--{name}" for name in switches}
    return [
        f"{arg}=true" if arg in alone and following not in ("true", "false") else arg
        for arg, following in zip(args, [*args, ""][1:], strict=True)
    ]


def collect_lists(args: Sequence[str], lists: Collection[str]) -> list[str]:
    """Join the values of each option that takes a list into one value in JSON.

    ``--neurons a:1 b:2``, ``--neurons a:1,b:2`` and ``--neurons a:1 --neurons b:2`` all become
    ``--neurons=["a:1", "b:2"]``; ``max(a:1,b:2)`` is one value. A list in brackets is kept, and
    after an equals sign there is one value.

    Args:
        args: The arguments.
        lists: Names of the options, without ``--``.

    Returns:
        The arguments, each such option once, where it first stood.
    """
    spelt: list[str] = []
    found: dict[str, tuple[int, list[str]]] = {}
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        option, equals, value = arg.partition("=")
        if option.removeprefix("--") not in lists or not arg.startswith("--"):
            spelt.append(arg)
            continue
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and rest[0] not in ("-h", "-c"):
            values.append(rest.pop(0))
        # Without a value, or with one that is a list already, the parser has the say.
        if not values or (len(values) == 1 and values[0].lstrip().startswith("[")):
            spelt += [f"{option}={v}" for v in values] or [option]
            continue
        if option not in found:
            found[option] = (len(spelt), [])
            spelt.append("")
        found[option][1].extend(v for text in values for v in _OUTSIDE_BRACKETS.split(text) if v)
    for option, (place, values) in found.items():
        spelt[place] = f"{option}={json.dumps([v.strip() for v in values])}"
    return spelt


def files_first(args: Sequence[str], files: Sequence[str]) -> list[str]:
    """Move options that name files of settings to the front, so that every flag wins over them.

    Args:
        args: The arguments.
        files: The options with their dashes, from the one that any other wins over.

    Returns:
        The arguments; those of one option keep their order.
    """
    moved: dict[str, list[str]] = {option: [] for option in files}
    kept: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        option = arg.partition("=")[0]
        if option not in moved:
            kept.append(arg)
            continue
        moved[option].append(arg)
        if option == arg and rest:
            moved[option].append(rest.pop(0))
    return [*(word for words in moved.values() for word in words), *kept]


def expand_options(args: Sequence[str]) -> list[str]:
    """Expand ``~/`` in values, those after an equals sign too."""
    parts = (arg.partition("=") if arg.startswith("--") else ("", "", arg) for arg in args)
    return [f"{option}{equals}{expand_home(value)}" for option, equals, value in parts]


def expand_home(value: Any) -> Any:
    """Expand ``~/`` at the beginning of a text, also inside lists, mappings and namespaces.

    A shell expands it in ``--run_dir ~/x``, but neither in ``--run_dir=~/x`` nor in a file.
    """
    match value:
        case str():
            return _expanded(value) if value == "~" or value.startswith(_HOME) else value
        case list():
            return [expand_home(item) for item in value]
        case dict():
            return {key: expand_home(item) for key, item in value.items()}
        case Namespace():
            for key, item in vars(value).items():
                setattr(value, key, expand_home(item))
            return value
        case _:
            return value


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise InputError(
            f"'{path}': there is no home directory; write the path in full, or set HOME."
        ) from error


def _is_signed(arg: str) -> bool:
    """Tell a value with a minus from an option; the only short option is -h."""
    return len(arg) > 1 and arg[0] == "-" and arg[1] != "-" and arg != "-h"


def _wants_value(arg: str) -> bool:
    """Tell an option whose value is still to come."""
    return arg.startswith("--") and "=" not in arg
