"""The report as Markdown: in full, and as a summary short enough for a comment or a step summary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reports import markdown
from reports.content import Content, Section
from reports.escape import markdown as escaped
from reports.sheet import in_markdown
from reports.suites import Suite

STEP_LIMIT = 2**20  # bytes that a GitHub step summary may have
_CUT = "\n\n*Cut here: the rest is in report.md.*\n"


def full(content: Content) -> str:
    """Everything but the kill matrix itself; figures are linked, relative to the report's folder."""
    parts = [*_opening(content), *(part for suite in content.report.suites for part in _suite(suite))]
    for section in content.sections:
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def short(content: Content, limit: int = STEP_LIMIT) -> str:
    """Answers, the table of backends and, as far as there is room, the matrices and what is red."""
    parts = [*_opening(content), *(part for suite in content.report.suites for part in _suite(suite))]
    text = "\n\n".join(parts) + "\n"
    if len(text.encode()) <= limit:
        return text
    kept: list[str] = []
    room = limit - len(_CUT.encode())
    for part in parts:
        room -= len(part.encode()) + 2
        if room < 0:
            break
        kept.append(part)
    return "\n\n".join(kept) + _CUT


def _opening(content: Content) -> Iterator[str]:
    yield "# LoRA report"
    if content.sentences:
        yield "\n".join(f"- {escaped(line)}" for line in content.sentences)
    if content.summary.rows:
        yield in_markdown(content.summary)
    if content.report.notes:
        yield "\n".join(f"- {escaped(line)}" for line in content.report.notes)
    if len(content.report.problems):
        told = content.report.problems.itertuples()
        yield "Could not be read:\n\n" + "\n".join(f"- {escaped(f'{p.file}: {p.problem}')}" for p in told)


def _suite(suite: Suite) -> list[str]:
    return [f"## Conformance, {escaped(suite.title)}", *markdown.body(suite.shown)]


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    if not section.blocks:
        yield section.absent
        return
    yield section.reading
    yield from _notes(section.notes)
    for block in section.blocks:
        yield f"### {escaped(block.sheet.title)}"
        if block.charts:
            yield "\n".join(f"![{escaped(chart.title)}](figures/{chart.id}.svg)" for chart in block.charts)
        yield in_markdown(block.sheet)
        yield from _notes(block.notes)


def _notes(notes: Iterable[str]) -> Iterator[str]:
    lines = [f"- {escaped(note)}" for note in notes]
    if lines:
        yield "\n".join(lines)
