"""Two sets of results: what became red or right, and which figures moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import numbers
from reports.inputs.benchmarks import KEY, OK
from reports.report import Report
from reports.results import RED
from reports.sheet import Cell, Head, Sheet, figure, quantity, word
from reports.suites import Suite

_DERIVED = {"tokens_s", "tflops", "roofline_frac", "ratio_to_peft"}  # time_ms over again
_TONES = {"broke": "bad", "worse": "bad", "slower": "warn", "mended": "good", "better": "good", "faster": "good"}
_ORDER = ("broke", "worse", "slower", "mended", "better", "faster", "changed", "gone", "new")


@dataclass(frozen=True)
class Comparison:
    """verdicts and figures: what differs, the worst first. same: how many trials and figures do not."""

    verdicts: Sheet
    figures: Sheet
    notes: list[str]
    same: tuple[int, int]
    broke: int

    @property
    def worse(self) -> bool:
        """Something became red, lost its value, or is worse in a figure without noise."""
        return self.broke > 0


def compare(old: Report, new: Report) -> Comparison:
    """What differs from one report to another.

    Verdicts are those of the newest suite of each. Deterministic figures must be equal. A time is slower or faster only
    if the two intervals do not overlap, which says less than ``lora-bench compare``: that one weighs the samples.
    """
    verdicts, same_cells, notes = _verdicts(old, new)
    figures, same_figures = _figures(old, new)
    broke = sum(row[0].text in {"broke", "worse"} for row in (*verdicts.rows, *figures.rows))
    return Comparison(verdicts, figures, notes, (same_cells, same_figures), broke)


def _verdicts(old: Report, new: Report) -> tuple[Sheet, int, list[str]]:
    heads = (Head("change"), Head("backend"), Head("invariant"), Head("verdict"), quantity("trials"))
    if not old.suites or not new.suites:
        one = bool(old.suites) != bool(new.suites)
        return Sheet("verdicts", "Verdicts", heads, []), 0, ["One side has no conformance results"] * one
    before, after = old.suites[0], new.suites[0]
    was, now = _trials(before), _trials(after)
    both = [trial for trial in now if trial in was]
    moved = Counter((*trial[:2], was[trial], now[trial]) for trial in both if was[trial] != now[trial])
    tried = Counter(trial[:2] for trial in both)
    rows = []
    for (backend, invariant, a, b), n in moved.items():
        told = _change(a, b)
        count = figure(n, "trials")._replace(small=f"of {tried[backend, invariant]}")
        rows.append([word(told, _TONES.get(told, "")), word(backend), word(invariant), word(f"{a} → {b}"), count])
    notes = list(_notes(before, after))
    if alone := (len(was) - len(both), len(now) - len(both)):
        notes += [f"{alone[0]} trials are on the old side only, {alone[1]} on the new side only"] if any(alone) else []
    return Sheet("verdicts", "Verdicts", heads, _sorted(rows)), len(both) - moved.total(), notes


def _trials(suite: Suite) -> dict[tuple[str, ...], str]:
    """Verdicts by backend, invariant, facet, dtype and model."""
    return {(r.backend, r.invariant, r.facet, r.dtype, r.on): r.verdict for r in suite.records}


def _change(old: str, new: str) -> str:
    if (old in RED) != (new in RED):
        return "broke" if new in RED else "mended"
    return "changed"


def _notes(old: Suite, new: Suite) -> Iterator[str]:
    if (old.version, old.digest) != (new.version, new.digest):
        changed = sum(
            one.statement != new.invariants[name].statement
            for name, one in old.invariants.items()
            if name in new.invariants
        )
        yield (
            f"Judged by different suites, {old.title} and {new.title}: {changed} of the statements in both read"
            " differently, and verdicts on those do not compare"
        )
    for name, version in new.matrix.backends.items():
        if name in old.matrix.backends and old.matrix.backends[name] != version:
            yield f"{name}: version {old.matrix.backends[name]} became {version}"
    profiles = [" and ".join(dict.fromkeys(run.profile for run in suite.runs)) for suite in (old, new)]
    if profiles[0] != profiles[1]:
        yield f"The old side was judged with the profile {profiles[0]}, the new one with {profiles[1]}"


def _figures(old: Report, new: Report) -> tuple[Sheet, int]:
    names = (Head("change"), Head("backend"), Head("metric"), Head("case"))
    heads = (*names, quantity("old"), quantity("new"), quantity("new / old"))
    columns = [*KEY, "unit", "better", "kind", "status", "value", "ci_low", "ci_high"]
    sides = []
    for report in (old, new):
        rows = report.benchmarks[report.benchmarks["shown"] & ~report.benchmarks["metric"].isin(_DERIVED)]
        sides.append(rows[columns].astype({name: object for name in columns if rows[name].dtype == "category"}))
    both = sides[0].merge(sides[1], on=list(KEY), how="outer", suffixes=("_old", "_new"))
    rows, same = [], 0
    for row in both.itertuples():
        told = _moved(row)
        if not told:
            same += 1
            continue
        unit = row.unit_old if pd.isna(row.unit_new) else row.unit_new
        was, now = _side(row, "old", unit), _side(row, "new", unit)
        ratio = now.value / was.value if was.value and now.value is not None else None
        of = (word(row.backend), word(row.metric), word(row.case_id))
        rows.append([word(told, _TONES.get(told, "")), *of, was, now, figure(ratio, "1")])
    return Sheet("figures", "Figures", heads, _sorted(rows)), same


def _moved(row: Any) -> str:
    """What is to be said of a figure, or nothing."""
    if pd.isna(row.status_old) or pd.isna(row.status_new):
        return "new" if pd.isna(row.status_old) else "gone"
    if row.status_old != row.status_new:
        return "broke" if row.status_old == OK else "mended" if row.status_new == OK else "changed"
    if row.status_new != OK or row.value_old == row.value_new:
        return ""
    up = row.value_new > row.value_old
    if row.kind_new == "deterministic":
        return "changed" if row.better_new == "none" else "better" if up == (row.better_new == "higher") else "worse"
    ends = [numbers.known(getattr(row, name)) for name in ("ci_high_old", "ci_low_new", "ci_high_new", "ci_low_old")]
    if None in ends or not (ends[0] < ends[1] or ends[2] < ends[3]):  # type: ignore[operator]
        return ""
    return "faster" if up == (row.better_new == "higher") else "slower"


def _side(row: Any, side: str, unit: str) -> Cell:
    value, status = getattr(row, f"value_{side}"), getattr(row, f"status_{side}")
    number = numbers.known(value)
    if number is None:
        return word("–" if pd.isna(status) else status, "quiet")
    text = numbers.full(number, unit)
    if getattr(row, f"kind_{side}") == "deterministic":
        return Cell(text, number)
    low, high = (numbers.known(getattr(row, f"ci_{end}_{side}")) for end in ("low", "high"))
    return Cell(text, number, "" if low is None or high is None else numbers.span(low, high))


def _sorted(rows: list[list[Cell]]) -> list[list[Cell]]:
    return sorted(rows, key=lambda row: _ORDER.index(row[0].text))
