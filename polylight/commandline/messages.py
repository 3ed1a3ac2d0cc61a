"""What parsers refuse, as one line that names what may have been meant."""

import re
from collections.abc import Collection, Sequence

from polylight.errors import nearest

_LITERAL = re.compile("'(.+?)'")
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "Iterable": "a list",
    "NoneType": "null",
    "dot import path string": "the path of a class",
}


def unknown_option(command: str, word: str, names: Collection[str]) -> str:
    """Say that a command has no such option, and which ones are near.

    Args:
        command: Its name.
        word: What was given: an option with its dashes, or a value that belongs to none.
        names: The options that it has, without dashes.

    Returns:
        A sentence.
    """
    option = word.partition("=")[0]
    if not option.startswith("-"):
        return f"'{option}' belongs to no option; see `polylight {command} --help`."
    close = nearest(option, [f"--{name}" for name in names])
    return f"{command} has no option {option}; {close}."


def one_line(command: str, message: str, names: Sequence[str]) -> str:
    """Say in a line what jsonargparse says in many.

    Args:
        command: Name of the command, such as ``fit``.
        message: Its message.
        names: Every option that the command has, without dashes.

    Returns:
        A sentence.
    """
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        return unknown_option(command, found[1], names)
    if found := re.match(r"(?:Group '(.+?)' does not accept o|O)ption '(.+?)'", message):
        name = f"{found[1]}.{found[2]}" if found[1] else found[2]
        return f"there is no setting {name}; {nearest(name, names)}."
    if found := re.match(r"the following arguments are required: (.+)", message):
        return _required(command, found[1].split(", "))
    if found := re.match(r'Linked "(.+?)" must be given via "(.+?)"', message):
        return f"{found[1]} follows --{found[2]}; set that instead."
    if found := re.match(r'Parser key "(.+?)":(.*)', message, re.DOTALL):
        return _value(command, found[1], found[2])
    return (
        f"{' '.join(message.split()).removeprefix('argument ')}; see `polylight {command} --help`."
    )


def _required(command: str, names: Sequence[str]) -> str:
    """Say that settings have to be given."""
    options = " and ".join(f"--{name}" for name in names)
    return f"{command} needs {options}; see `polylight {command} --help`."


def _value(command: str, name: str, said: str) -> str:
    """Say what a setting was expected to be, and what came."""
    given = re.search(r"(?:Got value|Given value): (.*)", said, re.DOTALL)
    value = " ".join(given[1].split()) if given else ""
    problem = re.search(r"Problem with given class_path '(.+?)':\s*(.+)", said)
    if problem:
        return f"--{name}: {problem[1]}: {problem[2].strip()}."
    types = re.findall(r"Expected an? (?!path)(.+?)(?:\. Got value|$)", said, re.MULTILINE)
    if not types:
        return f"--{name}: {' '.join(said.split())}."
    if value == "None" and "NoneType" not in said:
        return _required(command, [name])
    choices = [c for t in types if "Literal" in t for c in _LITERAL.findall(t)]
    close = f"; {nearest(value, choices)}" if choices else ""
    expected = " or ".join(dict.fromkeys(map(_type, types)))
    return f"--{name}: expected {expected}, not '{value}'{close}."


def _type(name: str) -> str:
    """Name a type in words."""
    if "Literal" in name:
        return f"one of {', '.join(_LITERAL.findall(name))}"
    bare = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", name)
    return _TYPES.get(bare.partition(": ")[0], bare)
