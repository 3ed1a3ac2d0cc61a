"""Errors that are the user's to mend."""

import difflib
from collections.abc import Iterable


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
        A clause such as ``nearest: layer4, layer3``; empty when there are no choices.
    """
    names = list(choices)
    lowered = {n.lower(): n for n in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.0)
    return f"nearest: {', '.join(lowered[c] for c in close)}" if close else ""
