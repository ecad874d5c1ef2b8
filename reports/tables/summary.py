"""Who conforms, who is fastest, who fits where: in sentences, and a row for each backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from reports import numbers
from reports.cost import MODE_NAMES, TRAINING
from reports.report import Report
from reports.sheet import Cell, Head, Sheet, figure, quantity, word
from reports.suites import BUT_GAPS, CONFORMS
from reports.tables.simulated import name_of, settings

TONES = {CONFORMS: "good", BUT_GAPS: "warn"}  # any other standing is bad
_NAMED = 8  # names in a sentence; the table has all of them
_HEADS = (
    Head("backend"),
    Head("standing", "conforms: no trial is red and some pass; but for gaps: what is broken is declared"),
    quantity("passed", "trials that pass, of all that there are; a trial is facet x dtype x model of one invariant"),
    quantity("red", "FAIL, ERROR, CRASH, TIMEOUT or GAP-CLOSED; in so many invariants"),
    quantity("gaps", "trials that are known and declared to be broken"),
    quantity("unsupported", "trials of what the backend does not claim, or that the quick profile leaves out"),
    quantity("error / bound", "largest rounding error as a share of the bound derived for it; above 1 is red"),
    *(
        quantity(f"{MODE_NAMES[m]} × frozen", f"time of {MODE_NAMES[m]} over that of the frozen layer")
        for m in TRAINING
    ),
    quantity("memory × frozen", "peak of a step over that of the frozen layer"),
)


def sheet(report: Report, means: pd.DataFrame) -> Sheet:
    """A row for each backend; ``means`` as ``reports.cost.overall`` gives them."""
    place = means["place"].iloc[0] if len(means) else ""
    at: dict[tuple[str, str], Any] = {(m.backend, m.mode): m for m in means[means["place"] == place].itertuples()}
    rows, seen = [], set()
    several = len(report.suites) > 1
    for backend in report.backends.itertuples():
        name = f"{backend.backend} {backend.version}".strip()
        references = _references(report, backend.backend)
        seen |= references
        label = word(name, small=f"suite {backend.suite}" if several else "")
        rows.append([label, *_conformance(backend), *_cost(at, references)])
    blank = [word("not judged", "quiet"), *[word("–", "quiet")] * 5]
    others = dict.fromkeys(name for name, _ in at if name not in seen)
    rows += [[word(name), *blank, *_cost(at, {name})] for name in others]
    return Sheet("summary", "Backends", _HEADS, rows)


def sentences(report: Report, means: pd.DataFrame, doubts: dict[str, str]) -> list[str]:
    """What the report says, in one sentence for each question that its results answer."""
    return [*_who_conforms(report), *_who_is_fastest(means, doubts), *_who_fits(report)]


def _conformance(backend: Any) -> Iterator[Cell]:
    yield word(backend.standing, TONES.get(backend.standing, "bad"))
    if numbers.known(backend.trials) is None:
        yield from [word("–", "quiet")] * 5
        return
    yield figure(backend.passed, "trials")._replace(small=f"of {backend.trials}")
    red = figure(backend.red, "trials")
    few = f"in {backend.red_invariants} invariant{'' if backend.red_invariants == 1 else 's'}"
    yield red._replace(tone="bad", small=few) if backend.red else red
    yield figure(backend.gaps, "trials")._replace(tone="warn" if backend.gaps else "")
    yield figure(backend.unsupported, "trials")
    yield figure(backend.worst_fraction, "1")


def _cost(at: dict[tuple[str, str], Any], references: Iterable[str]) -> Iterator[Cell]:
    found = {mode: next((at[name, mode] for name in references if (name, mode) in at), None) for mode in TRAINING}
    for mode in TRAINING:
        yield mean(found[mode], "ratio_to_frozen")
    yield mean(found["step"], "memory")


def mean(row: Any, name: str) -> Cell:
    """A geometric mean, and over how many of the cases."""
    if row is None:
        return word("not measured", "quiet")
    cases = numbers.known(getattr(row, f"{name}_cases")) or 0
    if not cases:
        return word(f"none of {row.of} cases", "quiet")
    return figure(getattr(row, name), "1")._replace(small=f"{cases:.0f} of {row.of} cases")


def _references(report: Report, backend: str) -> set[str]:
    """How benchmarks may name a backend: as it was asked for."""
    runs = [run for suite in report.suites for run in suite.runs]
    return {backend, *(reference for run in runs for reference, name in run.names.items() if name == backend)}


def _who_conforms(report: Report) -> Iterator[str]:
    for suite in report.suites:
        standing = {name: suite.standing(name) for name in suite.matrix.backends}
        right = [name for name, of in standing.items() if of in TONES]
        line = f"{len(right)} of {len(standing)} backends conform to {suite.title}"
        gaps = [f"{name} {suite.matrix.totals[name]['GAP']}" for name in right if standing[name] == BUT_GAPS]
        line += f", {len(gaps)} of them but for declared gaps (trials: {_few(gaps)})" if gaps else ""
        for of in dict.fromkeys(of for of in standing.values() if of not in TONES):
            line += f"; {of}: {_few([name for name, own in standing.items() if own == of])}"
        yield f"{line}."


def _few(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _who_is_fastest(means: pd.DataFrame, doubts: dict[str, str]) -> Iterator[str]:
    step = means[(means["mode"] == "step") & ~means["backend"].isin(list(doubts))] if len(means) else means
    for place, here in step.groupby("place", observed=True) if len(step) else ():
        whole = here[here["ratio_to_frozen_cases"] == here["of"]].sort_values("ratio_to_frozen")
        if len(whole):
            best = whole.iloc[0]
            ratio = numbers.shown(best["ratio_to_frozen"], "1")
            yield (
                f"Lowest time of a step on {place}: {best['backend']}, {ratio} times that of the frozen layer"
                f" (geometric mean over {best['of']} cases; {len(whole)} conforming backends ran all of them)."
            )


def _who_fits(report: Report) -> Iterator[str]:
    for setting in settings(report):
        steps = list(setting.steps.itertuples())
        first = steps[0]
        peaks = "; ".join(
            f"{name_of(step.method, checkpointing=step.checkpointing)} {numbers.shown(step.peak, 'B')},"
            f" {'fits' if step.fits else 'does not fit'}"
            for step in steps
        )
        room = numbers.shown(first.gpu_memory, "B")
        yield f"{setting.title} ({room}), simulated peak of a step: {peaks}."
