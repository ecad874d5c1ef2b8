"""Write a report: page, Markdown, tables, figures and badges, all of it or nothing."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from reports.badges import badges
from reports.content import Content, content
from reports.figures.theme import Chart, png
from reports.files import write_tables
from reports.loading import MARK
from reports.page.page import render
from reports.report import Report
from reports.text import full, short

Told = Callable[[str, float], None]


class FolderError(Exception):
    """One line: why the folder cannot be written."""


def check(out: Path) -> None:
    """Whether a report may be written there: a folder that is new, empty, or an earlier report.

    Raises:
        FolderError: it holds something else, or is no folder.
    """
    if out.is_dir():
        if any(out.iterdir()) and not (out / MARK).exists():
            raise FolderError(f"{out} holds something other than a report: name a new or empty folder")
    elif out.exists():
        raise FolderError(f"{out} is no folder")


def build(report: Report, out: Path, told: Told = lambda _what, _share: None) -> Content:
    """Write everything to ``out``; an earlier report there is replaced once the new one is whole.

    ``told`` hears what is being done, and what share of the work is behind it.

    Raises:
        FolderError: see ``check``; or the disk is full, or the folder may not be written.
    """
    check(out)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex}.part")
    try:
        for below in ("tables", "figures", "badges"):
            (part / below).mkdir(parents=True)
        made = _write(report, part, told)
        _swap(part, out)
    except OSError as error:
        raise FolderError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made


def _write(report: Report, folder: Path, told: Told) -> Content:
    told("tables", 0.0)
    write_tables(report, folder / "tables")
    told("figures", 0.2)
    made = content(report)
    svgs: dict[str, str] = {}
    for n, chart in enumerate(made.charts):
        told("figures", 0.3 + 0.6 * n / len(made.charts))
        svgs[chart.id] = _draw(chart, folder / "figures")
    told("page", 0.9)
    (folder / "index.html").write_text(render(made, svgs), encoding="utf-8")
    (folder / "report.md").write_text(full(made), encoding="utf-8")
    (folder / "summary.md").write_text(short(made), encoding="utf-8")
    for name, badge in badges(report):
        (folder / "badges" / name).write_text(badge, encoding="utf-8")
    mark = {"kind": "report", "read": report.read, "problems": len(report.problems)}
    (folder / MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    told("done", 1.0)
    return made


def _draw(chart: Chart, folder: Path) -> str:
    svg = chart.svg()
    (folder / f"{chart.id}.svg").write_text(svg, encoding="utf-8")
    (folder / f"{chart.id}.png").write_bytes(png(svg))
    return svg


def _swap(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex}.old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
