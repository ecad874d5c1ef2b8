"""A folder of runs as series: each figure from run to run, where it stepped, and how the newest run stands.

The newest run alarms in a series if its level is worse, by more than the gate, than the level that stood ``RECENT``
runs of the series before. So a regression alarms from the second run that shows it (the first one of a deterministic
figure) until it is mended, or for ``RECENT`` runs: then it is the level. A time must have moved itself, too, and not
only in relation to a floor that got faster: by half the gate, as in ``bench.evidence``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa

from bench import steps
from bench.record import FROZEN, KEY, METRICS, Status
from bench.regression import DERIVED, EXACT, MEMORY_GATES
from bench.statistics import Floats
from conformance.discovery import UsageError

COLUMNS = ["run_id", "timestamp", "commit", "dirty", *KEY, "status", "value"]  # all that a history reads
RECENT = 10
APART = 4.0  # a newest value so many times the noise away from its level is pointed out


class Course(StrEnum):
    """How the newest run stands, in the order in which they are shown."""

    BROKEN = "broken"  # had values, and now has a status instead
    WORSE = "worse"  # after a recent step to the worse
    APART = "apart"  # the newest run alone lies away from its level: perhaps the first of a step
    BETTER = "better"  # after a recent step to the better
    CHANGED = "changed"  # a recent change of what has no better direction, or of what only the floor explains
    STEADY = "steady"
    ABSENT = "absent"  # not in the newest run, so not judged

    @property
    def alarm(self) -> bool:
        return self in {Course.BROKEN, Course.WORSE}


@dataclass(frozen=True)
class Runs:
    """runs: run_id, timestamp, commit, dirty; oldest first. series: the columns of KEY. Figures are (series, runs).

    measured: NaN where a run has none. shown: the same at the typical speed of the floor, where one ran along.
    status: of each series in the newest run, "" where it has none.
    """

    runs: pd.DataFrame
    series: pd.DataFrame
    measured: Floats
    shown: Floats
    status: list[str]


@dataclass(frozen=True)
class Judged:
    """One series: values (runs,) as they were judged, with its segments."""

    case_id: str
    backend: str
    metric: str
    device_name: str
    threads: int
    course: Course
    values: Floats
    segments: list[steps.Segment]
    note: str = ""

    @property
    def stepped(self) -> list[tuple[int, float, float]]:
        """Run, level before, level after."""
        return [(b.start, a.level, b.level) for a, b in pairwise(self.segments)]


def gather(table: pa.Table, backend: str | None = None, metric: str | None = None) -> Runs:
    """Rows as series by runs; without a metric all that are judged, without a backend all.

    Raises:
        UsageError: no row is left, or a run holds a series twice.
    """
    rows = table.select(COLUMNS).to_pandas(strings_to_categorical=True)
    wanted = rows["metric"].isin({metric} if metric else METRICS.keys() - DERIVED)
    if backend:
        wanted &= rows["backend"].isin({backend, FROZEN})
    rows = rows[wanted]
    if rows.empty or (backend and not (rows["backend"] == backend).any()):
        raise UsageError(f"no run holds {metric or 'a figure'}" + (f" of {backend}" if backend else ""))
    about = rows.groupby("run_id", observed=True)[["timestamp", "commit", "dirty"]].first()
    runs = about.sort_values("timestamp", kind="stable").reset_index()
    position = np.zeros(len(rows["run_id"].cat.categories), dtype=np.intp)
    position[runs["run_id"].cat.codes] = runs.index
    run = position[rows["run_id"].cat.codes]
    number = rows.groupby(list(KEY), observed=True, dropna=False).ngroup().to_numpy()
    first = pd.Series(number).drop_duplicates().sort_values().index  # the row that is the first of each series
    series = rows.iloc[first][list(KEY)].reset_index(drop=True)
    cells = number * len(runs) + run
    if np.bincount(cells).max() > 1:
        raise UsageError("a run holds a series twice")
    values = np.full((len(series), len(runs)), np.nan)
    ok = (rows["status"] == Status.OK.value).to_numpy()
    values.flat[cells[ok]] = rows["value"].to_numpy(dtype=np.float64)[ok]
    newest = run == len(runs) - 1
    status = [""] * len(series)
    for i, told in zip(number[newest], rows["status"].to_numpy()[newest], strict=True):
        status[i] = str(told)
    found = Runs(runs, series, values, _at_typical_floor(series, values), status)
    return _without_floor(found) if backend and backend != FROZEN else found


def judge(found: Runs, gate: float) -> list[Judged]:
    """Every series, alarms first."""
    judged = []
    for metric, group in found.series.groupby("metric", observed=True).groups.items():
        at = np.asarray(group)
        known, shown = METRICS[str(metric)], found.shown[at]
        limit = 0.0 if metric in EXACT else MEMORY_GATES.get(str(metric), gate)
        parts = steps.exact(shown) if metric in EXACT else steps.segments(shown, limit)
        noise = np.zeros(len(at)) if metric in EXACT else steps.noise(shown)
        sign = {"lower": 1, "higher": -1, "none": 0}[known.better]
        for i, values, segments, own in zip(at, shown, parts, noise, strict=True):
            key = found.series.iloc[i]
            course, note = _course(found.status[i], values, segments, sign, limit, own)
            if course is Course.WORSE and not _itself(found.measured[i], segments, sign, limit):
                course, note = Course.CHANGED, "in relation to the floor only"
            if course.alarm and key["backend"] == FROZEN and metric == "time_ms":
                course, note = Course.CHANGED, "the floor itself: the machine or torch"
            where = (
                str(key["case_id"]),
                str(key["backend"]),
                str(metric),
                str(key["device_name"]),
                int(key["threads"]),
            )
            judged.append(Judged(*where, course, values, segments, note))
    order = list(Course)
    return sorted(judged, key=lambda j: (order.index(j.course), j.case_id, j.backend, j.metric))


def _at_typical_floor(series: pd.DataFrame, values: Floats) -> Floats:
    """Times as they would be, had the floor of each run been as fast as it is typically."""
    timed = series[series["metric"] == "time_ms"].reset_index(names="at")
    floors = timed[timed["backend"] == FROZEN]
    pairs = timed[timed["backend"] != FROZEN].merge(floors, on=["case_id", "device_name", "threads"])
    floor = values[pairs["at_y"].to_numpy(dtype=np.intp)]
    there = floor[~np.isnan(floor).all(axis=1)]
    typical = np.ones((len(floor), 1))
    typical[~np.isnan(floor).all(axis=1)] = np.nanmedian(there, axis=1, keepdims=True) if len(there) else 1.0
    scale = np.where(np.isnan(floor), 1.0, floor / typical)
    shown = values.copy()
    shown[pairs["at_x"].to_numpy(dtype=np.intp)] /= scale
    return shown


def _without_floor(found: Runs) -> Runs:
    kept = (found.series["backend"] != FROZEN).to_numpy()
    status = [told for told, keep in zip(found.status, kept, strict=True) if keep]
    series = found.series[kept].reset_index(drop=True)
    return Runs(found.runs, series, found.measured[kept], found.shown[kept], status)


def _course(
    status: str, values: Floats, segments: list[steps.Segment], sign: int, gate: float, noise: float
) -> tuple[Course, str]:
    if not status:
        return Course.ABSENT, ""
    there = np.flatnonzero(~np.isnan(values))
    if status != Status.OK:
        had = len(there) > 0 and there[-1] >= len(values) - 1 - RECENT
        return (Course.BROKEN if had else Course.STEADY), status
    since = there[max(len(there) - 1 - RECENT, 0)]
    before = [segment for segment in segments if segment.start <= since]
    recent = [segment for segment in segments if segment.start > since]
    level, newest = segments[-1].level, values[there[-1]]
    moved = level - before[-1].level
    if abs(moved) > gate * before[-1].level:
        worse = moved * sign > 0
        told = f"({moved / before[-1].level:+.1%})" if gate and before[-1].level else ""
        return (Course.CHANGED if sign == 0 else Course.WORSE if worse else Course.BETTER), told
    if recent and sign:
        return Course.STEADY, "recovered"
    if abs(newest - level) > max(gate, APART * noise) * level:
        return Course.APART, f"({newest / level - 1:+.1%})" if level else ""
    return Course.STEADY, ""


def _itself(values: Floats, segments: list[steps.Segment], sign: int, gate: float) -> bool:
    """Whether the figure as measured moved, too, around the last step to the worse."""
    start = next(b.start for a, b in reversed(list(pairwise(segments))) if (b.level - a.level) * sign > 0)
    before, after = values[:start], values[start:]
    before, after = before[~np.isnan(before)][-RECENT:], after[~np.isnan(after)][-RECENT:]
    return bool(sign * (np.median(after) - np.median(before)) > gate / 2 * np.median(before))
