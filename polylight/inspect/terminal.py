"""Text in a terminal: nothing in it is obeyed, and lines break between the tokens of a name."""

import re
from collections.abc import Callable, Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table

TOKENS = (" ,(", ".")
"""Marks behind which a line may break; those of an entry only where the earlier do not do."""


def printable(text: str, keep: str = "") -> str:
    r"""Spell out what a terminal would obey or hide: the escape character is ``\x1b``.

    Args:
        text: Any text.
        keep: Such characters that stay as they are, for instance line feeds.

    Returns:
        The text, in which every other character can be seen.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _spelt(c) for c in text)


def broken(
    text: str,
    width: float,
    marks: Sequence[str] = TOKENS,
    measure: Callable[[str], float] = cell_len,
) -> list[str]:
    """Break a text into lines, inside a token only if it is longer than a line.

    Args:
        text: A text without line feeds, such as a neuron's name.
        width: Width of a line, > 0.
        marks: Characters behind which a line may break; those of an entry only where the earlier
            entries leave a piece that is longer than a line.
        measure: Width of a text; by default in cells of a terminal.

    Returns:
        The lines; joined they are the text, but for spaces at their ends.
    """
    return [line.rstrip() for line in _lines(text, width, marks, measure)]


def tokens(text: str, marks: str = "".join(TOKENS)) -> list[str]:
    """Split a text behind every one of some marks; joined, the pieces are the text."""
    these = re.escape(marks)
    return re.findall(f"[^{these}]*[{these}]|[^{these}]+", text)


def bare_table() -> Table:
    """Make a table whose one line is under its head."""
    return Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _lines(
    text: str, width: float, marks: Sequence[str], measure: Callable[[str], float]
) -> list[str]:
    """Break a text into lines that, joined, are the text."""
    lines = [""]
    for piece in tokens(text, marks[0]) if marks else text:
        if measure((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        elif marks and measure(piece.rstrip()) > width:
            lines += _lines(piece, width, marks[1:], measure)
        else:
            lines.append(piece)
    return lines if lines[0] else lines[1:] or [""]


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode()
