"""A table for people: HTML and Markdown show the same cells, and a number keeps its full value behind the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reports import numbers
from reports.escape import inline, markdown


class Cell(NamedTuple):
    """value: what ``text`` shows, in full. small: small print behind it. tone: good, warn, bad, quiet."""

    text: str
    value: float | None = None
    small: str = ""
    tone: str = ""


class Head(NamedTuple):
    """meaning: what the column says. numeric: its cells stand to the right."""

    text: str
    meaning: str = ""
    numeric: bool = False


def quantity(text: str, meaning: str = "") -> Head:
    """The heading of numbers."""
    return Head(text, meaning, numeric=True)


@dataclass(frozen=True)
class Sheet:
    """``left_out`` rows are in the files only. ``id`` is unique in a report."""

    id: str
    title: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    left_out: int = 0


def word(text: object, tone: str = "", small: str = "") -> Cell:
    """Text, on one line."""
    return Cell(inline(text), small=inline(small), tone=tone)


def figure(value: object, unit: str, missing: str = "–", low: object = None, high: object = None) -> Cell:
    """A number with its unit, and its interval where it has one; ``missing`` says why there is none."""
    number = numbers.known(value)
    if number is None:
        return Cell(inline(missing), tone="quiet")
    ends = numbers.known(low), numbers.known(high)
    if unit in {"B", "FLOP"} or ends[0] is None or ends[1] is None:
        return Cell(numbers.shown(number, unit), number)
    return Cell(numbers.shown(number, unit), number, numbers.span(ends[0], ends[1]))


def in_markdown(sheet: Sheet) -> str:
    """As a table of Markdown; the title is the caller's."""
    lines = [_row(markdown(head.text) for head in sheet.heads)]
    lines.append(_row("---:" if head.numeric else "---" for head in sheet.heads))
    lines += [_row(_text(cell) for cell in row) for row in sheet.rows]
    if sheet.left_out:
        lines.append(f"\n{sheet.left_out} more rows are in the files under tables/.")
    return "\n".join(lines)


def _text(cell: Cell) -> str:
    small = cell.small if not cell.small or cell.small.startswith(("[", "of ", "in ")) else f"({cell.small})"
    return markdown(f"{cell.text} {small}".rstrip())


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
