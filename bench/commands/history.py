"""``history``: how every figure went from run to run, where it stepped, and whether the newest run may stand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import store
from bench.commands.compare import figure
from bench.history import COLUMNS, RECENT, Course, Judged, Runs, gather, judge
from bench.record import KEY, METRICS
from bench.statistics import Floats
from bench.steps import SHORTEST
from conformance.command_line import hint
from conformance.discovery import UsageError
from reports.escape import inline
from reports.escape import markdown as escaped

SHOWN = 40  # series in a table; the rest is counted
NEWEST = 30  # runs in a sparkline
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {Course.BROKEN: "bold red", Course.WORSE: "red", Course.APART: "yellow", Course.BETTER: "green"}
_MEANING = {
    Course.BROKEN: "had figures, and now has a status instead",
    Course.WORSE: f"since one of the last {RECENT} runs the level is worse by more than the gate",
    Course.APART: "the newest run alone is out, perhaps the first of a step",
    Course.BETTER: f"since one of the last {RECENT} runs the level is better by more than the gate",
    Course.CHANGED: "neither level is the better one, or only the floor moved",
}
_HEAD = ["course", "backend", "metric", "case", "newest", f"last {NEWEST} runs", "steps"]


def execute(
    folder: Path,
    *,
    backend: str | None,
    metric: str | None,
    gate: float,
    markdown: Path | None,
    out: Path | None = None,
) -> int:
    """Exit status 1 if the newest run stands after a recent step to the worse, or lost a figure; ``bench.history``.

    Options of the command: ``DIR --backend NAME`` (default: all), ``--metric NAME`` (default: all that are judged),
    ``--gate 0.04`` (relative, for times; memory has gates of its own), ``--markdown FILE`` and ``--out FILE`` (JSON).

    Raises:
        UsageError: no such metric, nothing there, or a file cannot be written.
    """
    if metric is not None and metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}: {hint(metric, METRICS)}")
    table, aside = store.load(folder, COLUMNS)
    runs = gather(table, backend, metric)
    judged = judge(runs, gate)
    remarks = [*_legend(runs, judged, gate), *(f"set aside as {each.path.name}: {each.why}" for each in aside)]
    _show(runs, judged, remarks, every=metric is not None)
    if markdown is not None:
        _write(markdown, comment(runs, judged, remarks))
    if out is not None:
        _write(out, json.dumps(recorded(runs, judged, gate)) + "\n")
    return int(any(each.course.alarm for each in judged))


def comment(runs: Runs, judged: list[Judged], remarks: list[str]) -> str:
    """Markdown: what is not steady, and the counts."""
    alarms = sum(each.course.alarm for each in judged)
    lines = [f"### History: {alarms or 'no'} alarm{'s' if alarms != 1 else ''} in {len(judged)} series", ""]
    lines += [_counts(judged), "", escaped(_title(runs)), ""]
    listed = [each for each in judged if each.course not in {Course.STEADY, Course.ABSENT}]
    if listed:
        rows = [_HEAD, ["---"] * len(_HEAD), *([escaped(c) for c in _cells(runs, each)] for each in listed[:SHOWN])]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += [f"\n… and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
        lines.append("")
    lines += [f"- {escaped(remark)}" for remark in remarks]
    return "\n".join(lines) + "\n"


def recorded(runs: Runs, judged: list[Judged], gate: float) -> dict[str, Any]:
    """Everything that was found, as plain values; a missing one is None."""
    about = [
        {"run_id": run.run_id, "timestamp": run.timestamp.isoformat(), "commit": run.commit, "dirty": bool(run.dirty)}
        for run in runs.runs.astype(object).where(runs.runs.notna(), None).itertuples()
    ]
    series = [
        {
            **{name: getattr(each, name) for name in KEY},
            "unit": METRICS[each.metric].unit,
            "course": each.course.value,
            "note": each.note,
            "values": [None if np.isnan(value) else float(value) for value in each.values],
            "segments": [[segment.start, segment.level] for segment in each.segments],
        }
        for each in judged
    ]
    return {"kind": "history", "schema": 1, "gate": gate, "runs": about, "series": series}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def sparkline(values: Floats) -> str:
    """One character per run, a space where there is none; the height spans what was seen, 10 % of it at least.

    So noise of a per cent stays flat, and does not look like a mountain range.
    """
    seen = values[~np.isnan(values)]
    if not len(seen):
        return ""
    low, high = float(seen.min()), float(seen.max())
    span = max(high - low, 0.1 * abs(high)) or 1.0
    heights = (values - (low + high) / 2) / span + 0.5
    return "".join(" " if np.isnan(h) else _BARS[min(int(h * len(_BARS)), len(_BARS) - 1)] for h in heights)


def _show(runs: Runs, judged: list[Judged], remarks: list[str], *, every: bool) -> None:
    """``every``: also what is steady; otherwise only where all of it fits."""
    console = Console(highlight=False)
    console.print(Text(inline(_title(runs))))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    listed = [each for each in judged if each.course is not Course.ABSENT]
    if not every and len(listed) > SHOWN:
        listed = [each for each in listed if each.course is not Course.STEADY]
        remarks = [*remarks, "what is steady is counted only: --metric NAME lists it"]
    for each in listed[:SHOWN]:
        course, backend, metric, case, newest, line, stepped = map(str, _cells(runs, each))
        what = Text(f"{backend} · {metric} · {case}\n")
        what.append(f"{line}  {newest}", _COLOURS.get(each.course, ""))
        what.append(f"   {stepped}" if stepped else "", "dim")
        table.add_row(Text(course, _COLOURS.get(each.course, "")), what)
    if listed:
        console.print(table)
    if len(listed) > SHOWN:
        console.print(f"… and {len(listed) - SHOWN} more")
    console.print(Text(_counts(judged), "bold"))
    for remark in remarks:
        console.print(Text(f"- {inline(remark)}"))


def _cells(runs: Runs, each: Judged) -> list[str]:
    """As under ``_HEAD``."""
    unit = METRICS[each.metric].unit
    there = each.values[~np.isnan(each.values)]
    gone = each.course in {Course.BROKEN, Course.ABSENT} or not len(there)
    newest = " ".join(part for part in ("" if gone else figure(there[-1], unit), each.note) if part)
    line = sparkline(each.values[-NEWEST:])
    return [each.course, each.backend, each.metric, each.case_id, newest, line, _chain(runs, each, unit)]


def _chain(runs: Runs, each: Judged, unit: str) -> str:
    """The last three steps: level, then each new level with the run that began it."""
    stepped = each.stepped[-3:]
    levels = [f"{figure(after, unit)} ({_run(runs, at)})" for at, _, after in stepped]
    return " → ".join([figure(stepped[0][1], unit), *levels]) if stepped else ""


def _run(runs: Runs, at: int) -> str:
    run = runs.runs.iloc[at]
    commit = run["commit"][:10] if isinstance(run["commit"], str) else "no commit"
    dirty = " with uncommitted changes" if str(run["dirty"]) == "True" else ""  # it may be missing
    return f"{run['timestamp']:%Y-%m-%d} {commit}{dirty}"


def _title(runs: Runs) -> str:
    when, n = runs.runs["timestamp"], len(runs.runs)
    if n == 1:
        return f"1 run, of {_run(runs, 0)}"
    return f"{n} runs, {when.iloc[0]:%Y-%m-%d %H:%M} to {when.iloc[-1]:%Y-%m-%d %H:%M} UTC; newest {_run(runs, n - 1)}"


def _counts(judged: list[Judged]) -> str:
    count = Counter(each.course for each in judged)
    return " · ".join(f"{count[course]} {course}" for course in Course if count[course])


def _legend(runs: Runs, judged: list[Judged], gate: float) -> list[str]:
    """What the words mean, where they occur, and what so short a history cannot show."""
    if len(runs.runs) == 1:
        return ["this is the first run: there is nothing to compare it with yet"]
    there = {each.course for each in judged}
    told = [f"{course}: {meaning}" for course, meaning in _MEANING.items() if course in there]
    told.append(f"the gate of times is {gate:.1%}; times are shown at the typical speed of the floor, the bare layer")
    if len(runs.runs) < SHORTEST:
        told.append(
            f"{len(runs.runs)} runs show what must be equal and what broke; steps of times and of memory peaks are"
            f" found from {SHORTEST} runs on, until then lora-bench compare judges them"
        )
    return told
