"""The progress bar of a long command."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(console: Console) -> Progress:
    """On a terminal a bar with the time left; elsewhere silence, but for what ``told`` says."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def told(console: Console, nth: int, total: int, name: str) -> None:
    """Off a terminal one line for each part of the work, so that a log does not stand still for minutes."""
    if not console.is_terminal:
        console.print(f"{nth} of {total}: {name}", markup=False, highlight=False, soft_wrap=True)
