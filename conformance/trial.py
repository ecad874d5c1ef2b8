"""Run one invariant against one backend and reach a verdict."""

from __future__ import annotations

import shlex
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.errors import FlakyFailure, FlakyReplay, Unsatisfiable

from conformance.cases import Case
from conformance.contract import Backend, Facet, Feature, Gap
from conformance.invariant import Check, Invariant
from conformance.judge import Judge
from conformance.record import Record, Verdict
from conformance.strategies import exercised_by
from conformance.subject import Subject
from conformance.violation import Failure, Violation

Watch = Callable[[Any], None]  # told each case before it is judged

ROUND = 10  # Hypothesis goes on with variations of what it has drawn; a fresh round draws anew
EXAMPLES = {"quick": 8, "full": 50}


@dataclass(frozen=True)
class Trial:
    """``reference`` is how the user named the backend, and so how a printed command names it."""

    invariant: Invariant
    backend: Backend
    reference: str
    facet: Facet
    dtype: str
    on: str = ""

    @property
    def id(self) -> str:
        where = f"{self.facet}@{self.on}" if self.on else self.facet
        return f"{self.backend.manifest.name}/{self.invariant.id}/{where}/{self.dtype}"

    @property
    def check(self) -> Check:
        return self.invariant.checks[self.facet]

    @property
    def gaps(self) -> list[Gap]:
        return [
            gap
            for gap in self.backend.manifest.gaps
            if gap.invariant == self.invariant.id
            and (not gap.facets or self.facet in gap.facets)
            and (not gap.dtypes or self.dtype in gap.dtypes)
        ]

    def subject(self) -> Subject:
        return Subject(self.backend, self.facet, self.dtype, self.on)

    def record(self, verdict: Verdict, **more: Any) -> Record:
        manifest = self.backend.manifest
        where = (self.invariant.family, self.facet.value, self.dtype, self.on)
        return Record(manifest.name, manifest.version, self.invariant.id, *where, verdict, **more)


def unsupported(trial: Trial, profile: str = "full") -> str:
    """Why the trial cannot be run, or ""."""
    if profile == "quick" and trial.check.slow:
        return "takes long: judged in the full profile only"
    missing = trial.check.needs - trial.backend.manifest.features
    if missing:
        return f"does not declare {', '.join(sorted(missing))}"
    return trial.check.draws.lacking(trial.subject())


def reproduce(trial: Trial, case: Any) -> str:
    """The command that judges exactly this case."""
    command = ["lora-conformance", "reproduce", trial.invariant.id, "--backend", trial.reference]
    return shlex.join([*command, "--facet", trial.facet.value, "--case", case.to_json()])


def run(trial: Trial, *, profile: str, seed: int, watch: Watch | None = None, shrink: bool = True) -> Record:
    """Judge drawn cases; where a gap is declared, judge the cases outside it, then the gap's own pinned case.

    ``watch`` is told each drawn case before it is judged: what is known of a trial that kills its process.
    Without ``shrink`` the first case that is found is the one reported: enough where only the verdict counts.
    """
    if reason := unsupported(trial, profile):
        return trial.record(Verdict.UNSUPPORTED, reason=reason)
    start = time.perf_counter()
    search = _Search(trial, _examples(trial, profile), seed, watch, shrink=shrink)
    gaps = trial.gaps
    record = search.record() if all(gap.where for gap in gaps) else trial.record(Verdict.PASS)
    if record.verdict is Verdict.PASS and gaps:
        record = _judge_gaps(trial, gaps, record, watch)
    record.features = tuple(sorted(search.exercised))
    record.seconds = round(time.perf_counter() - start, 4)
    return record


def _examples(trial: Trial, profile: str) -> int:
    """Fewer where one case takes long; on a model of real size two at the most, each of which judges many sites."""
    count = max(1, int(EXAMPLES[profile] / trial.check.cost))
    return min(count, 2) if trial.on and not trial.on.startswith("tiny-") else count


def replay(trial: Trial, fields: dict[str, Any]) -> Record:
    """Judge exactly one case, given by the fields that a failure printed."""
    return judge_case(trial, trial.check.draws.rebuild(fields))


def judge_case(trial: Trial, case: Any) -> Record:
    subject = trial.subject()
    try:
        trial.check.function(subject, case)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the backend raises is the result
        return _failed(trial, case, error, examples=1)
    return trial.record(Verdict.PASS, examples=1, fraction=_fraction(subject.judge))


class _Search:
    """Hypothesis looks for a case that breaks the invariant, and shrinks it."""

    def __init__(self, trial: Trial, examples: int, seed: int, watch: Watch | None, *, shrink: bool) -> None:
        self.trial, self.count, self.worst, self.watch = trial, 0, Judge(), watch
        self.exercised: set[Feature] = set(trial.check.needs)
        self.found: tuple[Any, BaseException] | None = None
        strategy = trial.check.draws(trial.subject())
        for gap in trial.gaps:
            strategy = strategy.filter(partial(_outside, gap))
        settings = hypothesis.settings(
            max_examples=min(ROUND, examples),
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        own_seed = zlib.crc32(f"{seed}/{trial.id}".encode())
        self.bodies: list[Callable[[], None]] = [
            hypothesis.seed(own_seed + nth)(settings(hypothesis.given(strategy)(self._judge)))
            for nth in range(-(-examples // ROUND))
        ]

    def _judge(self, case: Any) -> None:
        self.count += 1
        if self.watch is not None:
            self.watch(case)
        if isinstance(case, Case):
            self.exercised |= exercised_by(case)
        subject = replace(self.trial.subject(), judge=self.worst, exercised=self.exercised)
        try:
            self.trial.check.function(subject, case)
        except (Exception, SystemExit) as error:
            self.found = (case, error)
            raise

    def record(self) -> Record:
        try:
            for body in self.bodies:
                body()
        except Unsatisfiable:
            if not self.trial.gaps:
                raise
            return self.trial.record(Verdict.PASS)  # the gaps cover every case that the backend serves
        except (FlakyFailure, FlakyReplay):
            assert self.found is not None
            record = _failed(self.trial, *self.found, examples=self.count)
            record.reason = "the same case did not fail again: the backend is not deterministic"
            return record
        except (Exception, SystemExit):
            if self.found is None:
                raise
            return _failed(self.trial, *self.found, examples=self.count)
        return self.trial.record(Verdict.PASS, examples=self.count, fraction=_fraction(self.worst))


def covers(gap: Gap, case: Any) -> bool:
    """Whether the case is one that the gap concerns."""
    return all(getattr(case, name) in values for name, values in gap.where.items())


def _outside(gap: Gap, case: Any) -> bool:
    return not covers(gap, case)


def _judge_gaps(trial: Trial, gaps: list[Gap], outside: Record, watch: Watch | None) -> Record:
    for gap in gaps:
        case = trial.check.draws.pinned(trial.subject(), gap.case)
        if watch:
            watch(case)
        seen = judge_case(trial, case)
        raised = seen.cause.partition(":")[0] if seen.verdict is Verdict.ERROR else None
        if seen.verdict is Verdict.PASS:
            return trial.record(Verdict.GAP_CLOSED, reason=f"declared as broken, yet it holds: {gap.reason}")
        if raised != gap.raises:
            seen.reason = f"breaks otherwise than declared: {gap.reason}"
            return seen
        outside.verdict = Verdict.GAP
        outside.case, outside.reproduce, outside.cause, outside.failure = (
            seen.case,
            seen.reproduce,
            seen.cause,
            seen.failure,
        )
    outside.reason = "; ".join(gap.reason for gap in gaps)
    outside.upstream = " ".join(dict.fromkeys(gap.upstream for gap in gaps if gap.upstream))
    return outside


def _failed(trial: Trial, case: Any, error: BaseException, *, examples: int) -> Record:
    finding = error.finding if isinstance(error, Violation) else None
    trace = "" if finding else _trace(error)
    failure = Failure(
        invariant=trial.invariant.id,
        statement=trial.invariant.statement,
        backend=f"{trial.backend.manifest.name} {trial.backend.manifest.version}",
        facet=trial.facet.value + (f" on {trial.on}" if trial.on else ""),
        dtype=trial.dtype,
        case=case.described(),
        reproduce=reproduce(trial, case),
        finding=finding,
        error="" if finding else f"{type(error).__name__}: {_one_line(error)}",
        traceback=trace,
    )
    return trial.record(
        Verdict.FAIL if finding else Verdict.ERROR,
        examples=examples,
        failure=failure.text(),
        cause=finding.cause if finding else failure.error,
        case=failure.case,
        reproduce=failure.reproduce,
        traceback=trace,
    )


def _trace(error: BaseException) -> str:
    """Without Hypothesis's note, which tells the case once more."""
    error.__notes__ = [note for note in getattr(error, "__notes__", ()) if "_judge(" not in note]
    return "".join(traceback.format_exception(error))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "(no message)"


def _fraction(judge: Judge) -> float | None:
    return round(judge.largest_fraction, 4) if judge.largest_fraction else None
