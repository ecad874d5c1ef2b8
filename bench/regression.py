"""Two runs, series by series: what changed, and whether that can be believed.

Deterministic figures must be equal. Memory must stay within a gate of its own. Times are judged by ``bench.evidence``.
What an allocator reserved, or a process held, depends also on the cases that ran before: where those differ, it shows
nothing. A series that had a value and now has a status instead is broken. The times of the bare frozen layer are
context, shown and never a regression. What is timed once a run, as first calls are, has no noise to be judged by.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bench.evidence import Evidence, gate_in_force, weigh
from bench.record import FROZEN, KEY, METRICS, Status
from bench.statistics import Floats, Interval, split
from conformance.discovery import UsageError

GATE = 0.04
MEMORY_GATES = {"peak_alloc_delta": 0.001, "peak_reserved": 0.02}  # tracked bytes hardly vary, resident pages do
DERIVED = {"tokens_s", "tflops", "roofline_frac", "ratio_to_frozen", "ratio_to_peft"}  # time_ms over again
EXACT = {name for name, metric in METRICS.items() if metric.kind == "deterministic"} | {"recompiles"}
COLUMNS = [*KEY, "status", "value", "samples", "rounds", "error"]  # what a comparison reads of a run


class Verdict(StrEnum):
    """In the order in which they are shown."""

    BROKEN = "broken"  # had a value, and now has a status instead
    SLOWER = "slower"
    WORSE = "worse"  # memory or a deterministic figure
    FIXED = "fixed"
    FASTER = "faster"
    BETTER = "better"
    CHANGED = "changed"  # a figure of which neither direction is better, or one status for another
    AMBIGUOUS = "ambiguous"  # neither a change nor its absence is shown
    UNJUDGED = "not judged"  # a time of one sample
    MISSING = "missing"
    NEW = "new"
    SAME = "same"

    @property
    def regression(self) -> bool:
        return self in {Verdict.BROKEN, Verdict.SLOWER, Verdict.WORSE}

    @property
    def improvement(self) -> bool:
        return self in {Verdict.FIXED, Verdict.FASTER, Verdict.BETTER}


@dataclass(frozen=True)
class Change:
    """One series. ``ratio`` is new over old; of a time that has a floor, of its multiples of the floor."""

    case_id: str
    backend: str
    metric: str
    verdict: Verdict
    old: float | None = None
    new: float | None = None
    ratio: Interval | None = None
    p: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """changes: every series of either run once, regressions first, then improvements, and the same last.
    gate: the one in force for times. floor: new over old of each frozen series' time, (n,).
    """

    changes: list[Change]
    gate: float
    floor: Floats

    @property
    def regressed(self) -> bool:
        return any(change.verdict.regression for change in self.changes)


class Key(NamedTuple):
    """What ``bench.record.KEY`` names."""

    case_id: str
    backend: str
    metric: str
    device_name: str
    threads: int


Row = dict[str, Any]


def compare(old: pa.Table, new: pa.Table, gate: float = GATE) -> Comparison:
    """Compare two runs.

    Both are one run each, with the columns ``COLUMNS`` at least; ``gate`` is how far a time may move, 0.04 for 4 %.

    Raises:
        UsageError: a run holds a series twice, or the two have no series in common.
    """
    before, after = _series(old), _series(new)
    shared = [key for key in before if key in after]
    if not shared:
        raise UsageError("the two runs have no series (case, backend, metric, device and threads) in common")
    timed = {key: found for key in shared if (found := _evidence(key, before, after))}
    noise = [found for key, found in timed.items() if key.metric == "time_ms" and key.backend != FROZEN]
    in_force = gate_in_force(gate, noise)
    mixed = {key.backend for key in before.keys() ^ after.keys() if key.metric == "peak_reserved"}
    changes = []
    for key in {**before, **after}:
        if key.metric in DERIVED:
            continue
        old_row, new_row, found = before.get(key), after.get(key), timed.get(key)
        if old_row is None or new_row is None:
            changes.append(_change(key, Verdict.NEW if old_row is None else Verdict.MISSING, old_row, new_row))
        elif found is not None:
            verdict, note = _time(key, found, gate, in_force)
            changes.append(_change(key, verdict, old_row, new_row, found.judged, found.p, note))
        else:
            verdict, note = _figure(key, old_row, new_row, alike=key.backend not in mixed)
            changes.append(_change(key, verdict, old_row, new_row, _plain(old_row, new_row), None, note))
    order = list(Verdict)
    changes.sort(key=lambda c: (order.index(c.verdict), -_size(c), c.case_id, c.backend, c.metric))
    floor = [found.itself.median for key, found in timed.items() if key.backend == FROZEN]
    return Comparison(changes, in_force, np.array(floor))


def _series(table: pa.Table) -> dict[Key, Row]:
    rows = table.select(COLUMNS).to_pylist()
    found = {Key(*(row[name] for name in KEY)): row for row in rows}
    if len(found) < len(rows):
        raise UsageError(f"a run of {len(rows)} rows holds only {len(found)} series: some are there twice")
    return found


def _change(
    key: Key,
    verdict: Verdict,
    old: Row | None,
    new: Row | None,
    ratio: Interval | None = None,
    p: float | None = None,
    note: str = "",
) -> Change:
    was, now = (row["value"] if row else None for row in (old, new))
    return Change(key.case_id, key.backend, key.metric, verdict, was, now, ratio, p, note)


def _size(change: Change) -> float:
    return abs(float(np.log(change.ratio.median))) if change.ratio else 0.0


def _evidence(key: Key, before: dict[Key, Row], after: dict[Key, Row]) -> Evidence | None:
    """Of a time with samples in both runs."""
    a, b = _rounds(before[key]), _rounds(after[key])
    if a is None or b is None or key.metric in EXACT | DERIVED | MEMORY_GATES.keys():
        return None
    if key.backend == FROZEN or key.metric != "time_ms":
        return weigh(a, b, None, None)
    floor = key._replace(backend=FROZEN)
    return weigh(a, b, _rounds(before.get(floor)), _rounds(after.get(floor)))


def _time(key: Key, found: Evidence, gate: float, in_force: float) -> tuple[Verdict, str]:
    if key.backend == FROZEN:
        same = found.judged.within(gate)
        return (Verdict.SAME, "") if same else (Verdict.AMBIGUOUS, "the floor itself: the machine or torch")
    verdict = {1: Verdict.SLOWER, -1: Verdict.FASTER, 0: Verdict.AMBIGUOUS}[found.direction(in_force)]
    if verdict is Verdict.AMBIGUOUS and found.judged.within(gate):
        return Verdict.SAME, ""
    if not found.floored:
        return verdict, "no floor ran along"
    return verdict, f"the time itself: {found.itself.median - 1:+.1%}"


def _figure(key: Key, old: Row, new: Row, *, alike: bool) -> tuple[Verdict, str]:
    """A status, or figures without samples to test; ``alike``: the backend ran the same cases in both runs."""
    if {old["status"], new["status"]} != {Status.OK}:
        return _status(old["status"], new["status"]), _statuses(old, new)
    if key.metric in EXACT:
        return _exact(key.metric, old["value"], new["value"]), ""
    if key.metric in MEMORY_GATES:
        verdict = _memory(old, new, MEMORY_GATES[key.metric])
        if key.metric == "peak_reserved" and verdict is not Verdict.SAME and not alike:
            return Verdict.AMBIGUOUS, "other cases ran before in the same process"
        return verdict, ""
    return Verdict.UNJUDGED, ""


def _status(old: str, new: str) -> Verdict:
    if old == new:
        return Verdict.SAME
    if Status.OK not in {old, new}:
        return Verdict.CHANGED
    return Verdict.BROKEN if old == Status.OK else Verdict.FIXED


def _statuses(old: Row, new: Row) -> str:
    if old["status"] == new["status"]:
        return str(new["status"])
    error = " ".join((new["error"] or "").split())[:100]
    return f"{old['status']} → {new['status']}" + (f": {error}" if error else "")


def _exact(metric: str, old: float, new: float) -> Verdict:
    if old == new:
        return Verdict.SAME
    better = METRICS[metric].better
    if better == "none":
        return Verdict.CHANGED
    return Verdict.BETTER if (new < old) == (better == "lower") else Verdict.WORSE


def _memory(old: Row, new: Row, gate: float) -> Verdict:
    """Beyond the gate and, where several samples were taken, all of them on one side of all others."""
    was, now = old["value"], new["value"]
    if abs(now - was) <= gate * was:
        return Verdict.SAME
    a, b = (row["samples"] or [row["value"]] for row in (old, new))
    if now > was:
        return Verdict.WORSE if min(b) > max(a) else Verdict.AMBIGUOUS
    return Verdict.BETTER if max(b) < min(a) else Verdict.AMBIGUOUS


def _rounds(row: Row | None) -> list[Floats] | None:
    """None where there are not two samples to judge by."""
    if row is None or row["status"] != Status.OK or len(row["samples"] or ()) < 2 or min(row["samples"]) <= 0:
        return None
    return split(row["samples"], row["rounds"])


def _plain(old: Row, new: Row) -> Interval | None:
    """The ratio of two single figures, where there is one."""
    if not old["value"] or not new["value"]:
        return None
    moved = new["value"] / old["value"]
    return Interval(moved, moved, moved, moved, moved, n=1)
