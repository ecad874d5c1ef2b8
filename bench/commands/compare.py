"""``compare``: what changed from one run to another, on the terminal and as a comment for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import store
from bench.record import ENVIRONMENT, METRICS
from bench.regression import MEMORY_GATES, Change, Comparison, Verdict, compare
from conformance.discovery import UsageError
from reports.escape import inline
from reports.escape import markdown as escaped

SHOWN = 40  # rows of a table; the rest is counted
_COUNTED = {Verdict.SAME, Verdict.UNJUDGED, Verdict.MISSING, Verdict.NEW}  # no rows of their own: a remark tells more
_MOVING = {"load", "clock_mhz", "power_w", "temperature_c", "peak_tflops", "peak_gbs"}  # measured anew in each run
ABOUT = ("profile", "backend_version", "clocks_locked", *(name for name in ENVIRONMENT if name not in _MOVING))
_COLOURS = {"broken": "bold red", "slower": "red", "worse": "red", "fixed": "green", "faster": "green"}
_COLOURS |= {"better": "green", "changed": "yellow", "ambiguous": "yellow"}


@dataclass(frozen=True)
class Side:
    """One run: where it was found, its rows, and what was set aside on the way."""

    path: Path
    rows: pa.Table
    aside: list[store.Aside]

    def values(self, column: str) -> set[str]:
        """All values of a column."""
        found = pc.unique(self.rows[column]).to_pylist()
        return {str(value) for value in found if value is not None and value != ""}

    @property
    def title(self) -> str:
        first = self.rows.slice(0, 1).to_pylist()[0]
        when = f"{first['timestamp']:%Y-%m-%d %H:%M} UTC" if first["timestamp"] else "no date"
        dirty = " with uncommitted changes" if True in self.rows["dirty"].to_pylist() else ""
        return f"{first['run_id']} of {when}, commit {(first['commit'] or 'unknown')[:10]}{dirty}"


def execute(old: Path, new: Path, *, gate: float, markdown: Path | None) -> int:
    """Exit status 1 if something is broken, slower or worse, else 0.

    A folder stands for its newest run, a file for itself. Options of the command: ``OLD NEW --gate 0.04`` (relative,
    for times; memory has gates of its own) and ``--markdown FILE``.

    Raises:
        UsageError: nothing to compare, or the file cannot be written.
    """
    before, after = newest(old), newest(new)
    found = compare(before.rows, after.rows, gate)
    remarks = [*_about(before, after), *_apart(found), *_gates(found, gate, before, after)]
    _show(found, before, after, remarks)
    if markdown is not None:
        try:
            markdown.write_text(comment(found, before, after, remarks), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{markdown} cannot be written: {error.strerror}") from None
    return int(found.regressed)


def newest(where: Path) -> Side:
    """The newest run of a folder or a file.

    Raises:
        UsageError: there is none.
    """
    labels, aside = store.load(where, ["run_id", "timestamp"])
    if not labels.num_rows:
        raise UsageError(f"{where}: no rows")
    latest = labels.sort_by([("timestamp", "descending"), ("run_id", "descending")])["run_id"][0].as_py()
    parts = []
    for path in store.files(where):
        if latest in store.read(path, ["run_id"])["run_id"].to_pylist():
            rows = store.read(path)
            parts.append(rows.filter(pc.equal(rows["run_id"], latest)))
    return Side(where, pa.concat_tables(parts), aside)


def comment(found: Comparison, before: Side, after: Side, remarks: Iterable[str]) -> str:
    """Markdown, short enough for a pull request."""
    count = Counter(change.verdict for change in found.changes)
    bad, good = sum(v.regression * n for v, n in count.items()), sum(v.improvement * n for v, n in count.items())
    lines = [f"### Benchmarks: {_plural(bad, 'regression')}, {_plural(good, 'improvement')}", "", _counts(found), ""]
    lines += [f"Old: {escaped(before.title)}  ", f"New: {escaped(after.title)}", ""]
    moved = [change for change in found.changes if change.verdict not in {*_COUNTED, Verdict.AMBIGUOUS}]
    unclear = [change for change in found.changes if change.verdict is Verdict.AMBIGUOUS]
    lines += _grid(moved)
    if unclear:
        title = f"<summary>{len(unclear)} ambiguous: neither a change nor its absence is shown</summary>"
        lines += ["<details>", title, "", *_grid(unclear), "</details>", ""]
    lines += [f"- {escaped(remark)}" for remark in remarks]
    return "\n".join(lines).rstrip() + "\n"


def _show(found: Comparison, before: Side, after: Side, remarks: Iterable[str]) -> None:
    console = Console(highlight=False)
    for name, side in (("old", before), ("new", after)):
        console.print(Text(f"{name}  {inline(side.path)}: {inline(side.title)}"))
    listed = [change for change in found.changes if change.verdict not in _COUNTED]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for change in listed[:SHOWN]:
        verdict, backend, metric, case, old, new, moved, p, note = map(inline, _cells(change))
        what = Text(f"{backend} · {metric} · {case}")
        what.append("\n" + "   ".join(part for part in (f"{old} → {new}", moved, p and f"p {p}", note) if part), "dim")
        table.add_row(Text(verdict, _COLOURS.get(verdict, "")), what)
    if listed:
        console.print(table)
    if len(listed) > SHOWN:
        console.print(f"… and {len(listed) - SHOWN} more")
    console.print(Text(_counts(found), "bold"))
    for remark in remarks:
        console.print(Text(f"- {inline(remark)}"))


_HEAD = ["verdict", "backend", "metric", "case", "old", "new", "new / old", "p", "remark"]


def _cells(change: Change) -> list[str]:
    """As under ``_HEAD``."""
    unit = METRICS[change.metric].unit
    moved = ""
    if change.ratio and change.ratio.n > 1:
        moved = f"{change.ratio.median:.3f} [{change.ratio.low:.3f}, {change.ratio.high:.3f}]"
    elif change.old is not None and change.new is not None:
        moved = f"{'+' if change.new > change.old else ''}{figure(change.new - change.old, unit)}"
    p = "" if change.p is None else f"{change.p:.1g}"
    values = [figure(value, unit) for value in (change.old, change.new)]
    return [change.verdict, change.backend, change.metric, change.case_id, *values, moved, p, change.note]


def figure(value: float | None, unit: str) -> str:
    """A value with its unit: whole figures in full, since one byte more counts, others with four digits."""
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:#,.4g}".rstrip(".")
    return text if unit == "1" else f"{text} {unit}"


def _grid(changes: list[Change]) -> list[str]:
    if not changes:
        return []
    rows = [_HEAD, ["---"] * 4 + ["---:"] * 4 + ["---"]]
    rows += [[escaped(cell) for cell in _cells(change)] for change in changes[:SHOWN]]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, *([f"\n… and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []), ""]


def _counts(found: Comparison) -> str:
    count = Counter(change.verdict for change in found.changes)
    return " · ".join(f"{count[verdict]} {verdict}" for verdict in Verdict if count[verdict])


def _about(before: Side, after: Side) -> list[str]:
    """What differs between the runs apart from the figures, and what was set aside."""
    told = []
    for name in ABOUT:
        old, new = before.values(name), after.values(name)
        if old != new:
            told.append(f"{name} differs: {', '.join(sorted(old)) or 'none'} → {', '.join(sorted(new)) or 'none'}")
    if before.values("commit") == after.values("commit"):
        told.append("both runs are of the same commit")
    aside = {each.path: each for each in (*before.aside, *after.aside)}
    return told + [f"set aside as {path.name}: {each.why}" for path, each in aside.items()]


def _apart(found: Comparison) -> list[str]:
    """What only one of the runs has, and what was not judged: a line for each, however many rows it would take."""
    told = []
    for verdict, side in ((Verdict.MISSING, "old"), (Verdict.NEW, "new")):
        if lone := [change for change in found.changes if change.verdict is verdict]:
            backends, cases = (_few(getattr(change, name) for change in lone) for name in ("backend", "case_id"))
            told.append(f"only in the {side} run: {_plural(len(lone), 'figure')} of {backends} on {cases}")
    single = [change for change in found.changes if change.verdict is Verdict.UNJUDGED and change.ratio]
    for metric in sorted({change.metric for change in single}):
        moved = [change.ratio.median for change in single if change.metric == metric and change.ratio]
        low, middle, high = np.quantile(moved, (0, 0.5, 1))
        span = f"{middle:.2f} ({low:.2f} to {high:.2f}, {len(moved)} series)"
        told.append(f"{metric}, taken once a run, is shown and not judged: new / old {span}")
    return told


def _few(names: Iterable[str]) -> str:
    """Each once, the first three by name."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:3]) + (f" and {len(once) - 3} more" if len(once) > 3 else "")


def _gates(found: Comparison, gate: float, before: Side, after: Side) -> list[str]:
    told = f"gates: time {gate:.1%}"
    if found.gate > gate:
        loads = [f"{load:.1f}" for load in map(_load, (before, after)) if load is not None]
        busy = f" (load when they began: {', '.join(loads)})" if loads else ""
        told += f", raised to {found.gate:.1%} by the noise of these runs{busy}"
    told += "".join(f", {name} {limit:.1%}" for name, limit in MEMORY_GATES.items()) + "; all else must be equal"
    if not len(found.floor):
        return [told, "no floor, the bare layer, ran along: the machine's doing cannot be told from a backend's"]
    low, middle, high = (f"{x - 1:+.1%}" for x in np.quantile(found.floor, (0, 0.5, 1)))
    floor = f"the floor, the bare layer, moved by {middle} ({low} to {high}, {_plural(len(found.floor), 'case')})"
    return [told, f"{floor}; new / old of a time is that of its multiples of the floor, with a 95 % interval"]


def _load(side: Side) -> float | None:
    load: float | None = pc.max(side.rows["load"]).as_py()
    return load


def _plural(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'s' if n != 1 else ''}"
