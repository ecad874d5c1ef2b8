"""Conformance runs put together: those of one suite version share a matrix, those of different ones never do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from reports.results import IMPORT, Invariant, Record, Results
from reports.summary import Matrix, matrix, red_count, unexercised

CONFORMS, BUT_GAPS, WRONG = "conforms", "conforms but for gaps", "does not conform"
LOST, UNTESTED = "cannot be imported", "passes nothing"
_THOROUGH = {"full": 1}  # any other profile draws fewer cases


@dataclass(frozen=True)
class Suite:
    """Runs that judged the same statements by the same version, the oldest first.

    Two versions of one backend stand beside each other, as ``name@version``.
    """

    version: str
    digest: str
    runs: tuple[Results, ...]

    @property
    def title(self) -> str:
        return f"suite {self.version} ({self.digest[:8]})"

    def label(self, name: str, version: str) -> str:
        """The name under which a backend is shown."""
        return f"{name}@{version}" if name in self._several else name

    @cached_property
    def chosen(self) -> frozenset[int]:
        """The ids (Python's) of the runs' records that are shown."""
        return frozenset(id(record) for record in _chosen(self.runs).values())

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """Each trial once: the verdict of the fullest, then the newest run that holds it."""
        return tuple(record for run in self.shown for record in run.records)

    @cached_property
    def shown(self) -> tuple[Results, ...]:
        """The runs with only those records that are shown, and with names that tell versions apart."""
        kept = []
        for run in self.runs:
            label = {name: self.label(name, version) for name, version in run.backends.items()}
            records = (
                r if label[r.backend] == r.backend else replace(r, backend=label[r.backend]) for r in run.records
            )
            pairs = zip(run.records, records, strict=True)
            one = replace(
                run,
                records=tuple(new for old, new in pairs if id(old) in self.chosen),
                backends={label[name]: version for name, version in run.backends.items()},
                claims={label[name]: claims for name, claims in run.claims.items()},
            )
            kept.append(one)
        return tuple(kept)

    @cached_property
    def matrix(self) -> Matrix:
        return matrix(self.shown)

    @cached_property
    def unexercised(self) -> dict[str, list[str]]:
        """Features that a backend declares and no trial made use of."""
        return unexercised(self.shown)

    @cached_property
    def invariants(self) -> dict[str, Invariant]:
        return {one.id: one for run in self.runs for one in run.invariants}

    def standing(self, backend: str) -> str:
        """What the trials that are shown say of a backend, in one phrase."""
        counts = self.matrix.totals.get(backend)
        if counts is None or not counts.total():
            return UNTESTED
        if red_count(counts):
            return LOST if (IMPORT, backend) in self.matrix.cells else WRONG
        if not counts["PASS"]:
            return UNTESTED
        return BUT_GAPS if counts["GAP"] else CONFORMS

    def notes(self) -> list[str]:
        """What a reader has to know of how the runs were put together."""
        told = [name for backend, runs in self._judged().items() if (name := _overlap(backend, runs))]
        if not told:
            return []
        rule = "of each trial the fullest, then the newest verdict is shown"
        return [f"Judged in more than one run, and {rule}: {', '.join(told)}"]

    def _judged(self) -> dict[tuple[str, str], list[Results]]:
        found: dict[tuple[str, str], list[Results]] = {}
        for run in self.runs:
            for backend in run.backends.items():
                found.setdefault(backend, []).append(run)
        return found

    @cached_property
    def _several(self) -> set[str]:
        names = [name for name, _ in self._judged()]
        return {name for name in names if names.count(name) > 1}


def suites(runs: Iterable[Results]) -> list[Suite]:
    """One for each version and digest; the suite of the newest run first."""
    grouped: dict[tuple[str, str], list[Results]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        grouped.setdefault((run.suite, run.digest), []).append(run)
    made = [Suite(version, digest, tuple(of)) for (version, digest), of in grouped.items()]
    return sorted(made, key=lambda suite: suite.runs[-1].started, reverse=True)


def mixed(found: Sequence[Suite]) -> list[str]:
    """One line where several suites are in one report."""
    if len(found) < 2:
        return []
    names = ", ".join(suite.title for suite in found)
    return [f"These results were judged by different suites, and each has a matrix of its own: {names}"]


def _chosen(runs: Iterable[Results]) -> dict[tuple[str, ...], Record]:
    best: dict[tuple[str, ...], tuple[tuple[int, str], Record]] = {}
    for run in runs:
        rank = (_THOROUGH.get(run.profile, 0), run.started)
        for record in run.records:
            trial = _trial(record)
            if trial not in best or best[trial][0] <= rank:
                best[trial] = (rank, record)
    return {trial: record for trial, (_, record) in best.items()}


def _trial(record: Record) -> tuple[str, ...]:
    return (*record.place, record.version, record.invariant)


def _overlap(backend: tuple[str, str], runs: Sequence[Results]) -> str:
    """The name of a backend of which trials are in several runs, and how many that are not shown disagree."""
    records = [r for run in runs for r in run.records if (r.backend, r.version) == backend]
    shown = {_trial(r): r for r in _chosen(runs).values() if (r.backend, r.version) == backend}
    others = [r for r in records if shown[_trial(r)] is not r]
    if not others:
        return ""
    other = sum(r.verdict not in {shown[_trial(r)].verdict, "UNSUPPORTED"} for r in others)
    name = " ".join(backend).strip()
    return f"{name} ({other} of {len(others)} verdicts that are not shown say otherwise)" if other else name
