"""What `lora-report` does, on the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from reports.build import FolderError, build, check
from reports.compare import Comparison, compare
from reports.escape import inline
from reports.escape import markdown as escaped
from reports.loading import load
from reports.report import Report
from reports.sheet import Sheet, in_markdown
from reports.text import STEP_LIMIT, short

SHOWN = 40  # rows of a table of changes; the rest is counted
_STYLES = {"good": "green", "warn": "yellow", "bad": "red", "quiet": "dim", "": ""}


def build_report(results: Iterable[Path], out: Path, *, step_summary: bool) -> int:
    """Exit status 0; 1 if something could not be read, 2 if nothing could.

    Raises:
        FolderError: the folder cannot be written, or there is no step summary to append to.
    """
    check(out)
    summary = _step_summary() if step_summary else None
    console = Console(stderr=True, highlight=False)
    with _progress(console) as bar:
        task = bar.add_task("reading", total=1.0)

        def track(files: list[Path]) -> Iterator[Path]:
            for n, file in enumerate(files):
                bar.update(task, completed=0.4 * n / len(files))
                yield file

        report = load(*results, track=track)
        _problems(report, console)
        if not report.read:
            console.print("lora-report: nothing could be read, nothing is written")
            return 2
        told = build(report, out, lambda what, share: bar.update(task, description=what, completed=0.4 + 0.6 * share))
    for line in (*told.sentences, *(f"{note}." for note in report.notes)):
        console.print(Text(inline(line)), soft_wrap=True)
    if summary is not None:
        _append(summary, short(told, STEP_LIMIT - _size(summary)))
    console.print(Text(inline(f"wrote {out / 'index.html'}")), soft_wrap=True)
    return int(len(report.problems) > 0)


def compare_reports(old: Path, new: Path, markdown: Path | None) -> int:
    """Exit status 1 if something is worse, 2 if a side holds nothing.

    Raises:
        FolderError: the file cannot be written.
    """
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    sides = [load(old), load(new)]
    for side in sides:
        _problems(side, errors)
    if not all(side.read for side in sides):
        errors.print("lora-report: a side holds no results: nothing to compare")
        return 2
    found = compare(*sides)
    for sheet, same in zip((found.verdicts, found.figures), found.same, strict=True):
        console.print(Text(f"{sheet.title}: {len(sheet.rows)} differ, {same} are the same", "bold"))
        if sheet.rows:
            console.print(_table(sheet))
        if len(sheet.rows) > SHOWN:
            console.print(f"… and {len(sheet.rows) - SHOWN} more")
    for note in found.notes:
        console.print(Text(inline(note)), soft_wrap=True)
    if markdown is not None:
        _write(markdown, comment(found, old, new))
    return int(found.worse)


def comment(found: Comparison, old: Path, new: Path) -> str:
    """Markdown, short enough for a pull request."""
    parts = [f"### LoRA: {found.broke or 'nothing'} worse", f"{escaped(old)} → {escaped(new)}"]
    for sheet, same in zip((found.verdicts, found.figures), found.same, strict=True):
        parts.append(f"{sheet.title}: {len(sheet.rows)} differ, {same} are the same.")
        if sheet.rows:
            rest = max(len(sheet.rows) - SHOWN, 0)
            parts.append(in_markdown(Sheet(sheet.id, sheet.title, sheet.heads, sheet.rows[:SHOWN])))
            parts += [f"… and {rest} more"] if rest else []
    parts += ["\n".join(f"- {escaped(note)}" for note in found.notes)] if found.notes else []
    return "\n\n".join(parts) + "\n"


def _problems(report: Report, console: Console) -> None:
    for problem in report.problems.itertuples():
        console.print(Text(inline(f"{problem.file}: {problem.problem}"), "yellow"), soft_wrap=True)


def _table(sheet: Sheet) -> Table:
    """A row for each change: what it is, then in small print the numbers, so that it fits a narrow terminal."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    words = [n for n, head in enumerate(sheet.heads) if n and not head.numeric]
    numbers = [n for n, head in enumerate(sheet.heads) if head.numeric]
    for row in sheet.rows[:SHOWN]:
        told = Text(" · ".join(row[n].text for n in words))
        small = [f"{sheet.heads[n].text} {row[n].text} {row[n].small}".rstrip() for n in numbers]
        told.append("\n" + "   ".join(small), "dim")
        table.add_row(Text(row[0].text, _STYLES[row[0].tone]), told)
    return table


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:8}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _step_summary() -> Path:
    given = os.environ.get("GITHUB_STEP_SUMMARY")
    if not given:
        raise FolderError("--step-summary: $GITHUB_STEP_SUMMARY is not set; inside a GitHub Actions step it is")
    return Path(given)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}") from None
