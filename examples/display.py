"""What is seen of a run: a bar while it trains, lines that stay, tables at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from reports.escape import inline

CONSOLE = Console(soft_wrap=True, markup=False, highlight=False)


def bar() -> Progress:
    """A task's description holds what is trained and the loss. Without a terminal nothing is drawn."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    words = TextColumn("{task.description}", markup=False)
    return Progress(words, *columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal)


def table(title: str, corner: str, columns: Iterable[str], rows: Mapping[str, Sequence[float]]) -> Table:
    """Fractions with three digits, whole numbers as they are."""
    made = Table(corner, *(inline(column) for column in columns), title=title)
    for name, values in rows.items():
        made.add_row(inline(name), *(str(value) if isinstance(value, int) else f"{value:.3f}" for value in values))
    return made


def summary(metrics: Mapping[str, Any], file: Path) -> str:
    """What was trained and saved, and whether the base is as it was."""
    sizes, same = metrics["adapter"], metrics["base unchanged"]
    trained = f"trained {sizes['trainable share']:.2%} of the parameters"
    size = f"an adapter takes {sizes['adapter bytes'] / 1e6:.2f} MB, the model {sizes['model bytes'] / 1e6:.2f} MB"
    return f"{trained}; {size}; the base is {'bit-identical' if same else 'CHANGED'}; all figures: {inline(file)}"
