"""Errors that are the user's to mend."""

import difflib
from collections.abc import Collection, Iterable

# Of so many choices even distant ones are worth naming.
_FEW = 8
_ALIKE = 0.5


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message says what was expected, what came, and what to do. The command line prints it
    without a traceback and exits with status 2.
    """


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """Name the choices that are nearest to a name that does not exist.

    Args:
        name: What the user wrote.
        choices: Every valid name.
        count: How many to name at the most, > 0.

    Returns:
        A clause such as ``nearest: layer4, layer3``; ``nearest: none`` where nothing
        is like the name.
    """
    lowered = {choice.lower(): choice for choice in reversed(list(choices))}
    cutoff = 0.0 if len(lowered) <= _FEW else _ALIKE
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=cutoff)
    return f"nearest: {', '.join(lowered[c] for c in close) or 'none'}"


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: What is chosen.
        value: What the user chose.
        choices: Every valid value.

    Raises:
        InputError: If it is none of them.
    """
    if value not in choices:
        raise InputError(f"{name} '{value}' does not exist; {nearest(value, choices)}.")
