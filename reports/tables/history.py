"""Histories: how each figure stands, and where it stepped."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from reports import numbers
from reports.inputs.benchmarks import KEY
from reports.report import Report
from reports.sheet import Cell, Head, Sheet, quantity, word

ORDER = ("broken", "worse", "apart", "better", "changed", "steady", "absent")
TONES = {"broken": "bad", "worse": "bad", "apart": "warn", "better": "good", "changed": "warn", "absent": "quiet"}
ROWS = 300  # of the table
SERIES = 12  # with a figure
_KEY = ["file", *KEY]


@dataclass(frozen=True)
class Course:
    """One series: its row of ``courses``, and its runs."""

    id: str
    title: str
    unit: str
    course: str
    points: pd.DataFrame


def courses(report: Report) -> pd.DataFrame:
    """What needs a look first; of a series in several files the one that reaches furthest."""
    rank = {name: n for n, name in enumerate(ORDER)}
    until = report.history.groupby("file")["timestamp"].max().rename("until")
    newest = report.courses.join(until, on="file").sort_values("until", kind="stable")
    newest = newest.drop_duplicates(list(KEY), keep="last").sort_index()
    order = newest["course"].astype(str).map(rank).fillna(len(ORDER))
    return newest.assign(order=order).sort_values(["order", "steps"], ascending=[True, False], kind="stable")


def drawn(report: Report) -> list[Course]:
    """Series to draw: those that moved, and if none did the first few."""
    found = courses(report)
    moved = found[(found["steps"] > 0) | found["course"].isin(["broken", "worse", "apart"])]
    points = report.history.groupby(_KEY, observed=True, sort=False, dropna=False).indices
    made = []
    for n, row in enumerate((moved if len(moved) else found).head(SERIES).itertuples()):
        key = tuple(getattr(row, name) for name in _KEY)
        title = f"{row.backend} · {row.metric} · {row.case_id}"
        made.append(Course(f"history-{n}", title, str(row.unit), str(row.course), report.history.iloc[points[key]]))
    return made


def sheet(report: Report) -> Sheet:
    """A row for each series."""
    heads = (
        Head("course", "how the newest run stands"),
        Head("backend"),
        Head("metric"),
        Head("case"),
        quantity("newest", "value of the newest run"),
        Head("remark"),
        Head("steps", "levels, and the run with which each began"),
    )
    found = courses(report)
    groups = report.history.groupby(_KEY, observed=True, sort=False, dropna=False).indices
    rows = []
    for row in found.head(ROWS).itertuples():
        points = report.history.iloc[groups[tuple(getattr(row, name) for name in _KEY)]]
        newest = points["value"].iloc[-1] if len(points) else None
        rows.append(
            [
                word(row.course, TONES.get(str(row.course), "")),
                *(word(text) for text in (row.backend, row.metric, row.case_id)),
                _exact(newest, str(row.unit)),
                word(row.note),
                word(_chain(points, str(row.unit))),
            ]
        )
    return Sheet("history", "Series", heads, rows, len(found) - len(rows))


def points(course: Course) -> Sheet:
    """A row for each run of one series."""
    heads = (Head("run"), Head("commit"), quantity("value"), quantity("level"), Head("step"))
    rows = [
        [
            word(f"{run.timestamp:%Y-%m-%d %H:%M}"),
            word(str(run.commit)[:10]),
            _exact(run.value, course.unit),
            _exact(run.level, course.unit),
            word("step" if run.step else ""),
        ]
        for run in course.points.itertuples()
    ]
    return Sheet(course.id, course.title, heads, rows)


def _exact(value: object, unit: str) -> Cell:
    number = numbers.known(value)
    return word("none", "quiet") if number is None else Cell(numbers.full(number, unit), number)


def _chain(points: pd.DataFrame, unit: str) -> str:
    """The last three steps: level → level (since when)."""
    steps = points[points["step"].fillna(value=False)].tail(3)
    if steps.empty:
        return ""
    before = points["level"].iloc[max(points.index.get_loc(steps.index[0]) - 1, 0)]
    first = "" if numbers.known(before) is None else numbers.full(before, unit)
    told = [f"{numbers.full(s.level, unit)} ({s.timestamp:%Y-%m-%d} {str(s.commit)[:10]})" for s in steps.itertuples()]
    return " → ".join([first, *told])
