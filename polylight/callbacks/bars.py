"""Bars that show how far something is: on a terminal, and in a notebook."""

from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class TerminalBar:
    """One line that is drawn over.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.fields[text]}"),
            BarColumn(),
            TextColumn("{task.fields[rest]}"),
        )
        self._bar = Progress(*columns, console=console)
        self._bar.add_task("", total=1.0, text="", rest="")
        self._bar.start()

    def show(self, share: float, text: str, rest: str) -> None:
        """Show a share in [0, 1], with a text before it and one after it."""
        self._bar.update(self._bar.task_ids[0], completed=share, text=text, rest=rest)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


class NotebookBar:
    """An output of the cell that changes; it needs no widgets."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, share: float, text: str, rest: str) -> None:
        """Show a share in [0, 1], with a text before it and one after it."""
        from IPython.display import HTML, display

        page = HTML(  # type: ignore[no-untyped-call]
            '<div style="font:13px system-ui,sans-serif;display:flex;gap:10px;align-items:center">'
            f"<span>{escape(text)}</span>"
            f'<progress value="{share:.4f}" max="1" style="width:220px">{share:.0%}</progress>'
            f'<span style="opacity:.7">{escape(rest)}</span></div>'
        )
        if self._handle is None:
            self._handle = display(page, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(page)

    def stop(self) -> None:
        """The last state stays where it is."""
