"""Measure groups of cases on this machine: memory first, then times, the backends taking turns in random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.cases import Case, Mode
from bench.engines.processes import Worker
from bench.figures import Row, Timed, rows
from bench.record import FROZEN, Status
from bench.verdicts import CONFORMING, Verdict
from bench.worker import Quantity, Reply

FEWEST_ROUNDS = 3  # before a case is called steady
_NO_FLOOR = (Mode.MERGE, Mode.LOAD, Mode.SWITCH)  # a layer without an adapter has nothing to do there


@dataclass(frozen=True)
class Effort:
    """How long a run tries.

    rounds: how often the backends take turns on a case, unless it is steady before (see ``bench.figures.Timed``).
    samples, seconds: of one turn; whichever ends first, but never fewer than ``bench.timing.FEWEST`` samples.
    timeout: seconds for one answer of a worker.
    """

    rounds: int = 5
    samples: int = 6
    seconds: float = 0.2
    timeout: float = 300.0


@dataclass(frozen=True)
class Group:
    """Cases that differ in their mode only; they are measured together."""

    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        return self.cases[0].case_id.rsplit(" ", 1)[0]


def groups(cases: Sequence[Case]) -> list[Group]:
    """In the given order; equal cases are measured once."""
    unique = list(dict.fromkeys(cases))
    return [Group(tuple(part)) for _, part in groupby(unique, key=lambda case: replace(case, mode=Mode.STEP))]


def pairs(group: Group, backends: Iterable[str]) -> list[tuple[Case, str]]:
    """What is measured in a group."""
    both = [(case, backend) for case in group.cases for backend in backends]
    return [(case, backend) for case, backend in both if not (backend == FROZEN and case.mode in _NO_FLOOR)]


class Local:
    """Worker processes, one for each backend and quantity, that live as long as the run."""

    def __init__(
        self,
        cases: Sequence[Case],
        judged: dict[str, Verdict],
        *,
        device: str,
        threads: int,
        effort: Effort,
        log: Path,
        seed: int = 0,
    ) -> None:
        self.cases, self.judged, self.effort = list(dict.fromkeys(cases)), judged, effort
        self.random = random.Random(seed)  # noqa: S311 - an order, no secret
        self.workers: dict[tuple[Quantity, str], Worker] = {}
        for backend, verdict in judged.items():
            if verdict.word == CONFORMING or backend == FROZEN:
                for quantity in ("memory", "time"):
                    at: Any = (quantity, backend)
                    self.workers[at] = Worker(quantity, backend, self.cases, device, threads, log)

    def measure(self, group: Group, environment: Row, tick: Callable[[], None] = lambda: None) -> list[Row]:
        """All rows of the group. ``tick`` is called after every answer of a worker: see ``answers``."""
        exact: dict[tuple[Case, str], Row] = {}
        timed: dict[tuple[Case, str], Timed] = {}
        for case, backend in pairs(group, self.judged):
            verdict = self.judged[backend]
            if ("memory", backend) not in self.workers:
                timed[case, backend] = Timed(Status.WRONG, verdict.reason)
                continue
            reply = self.workers["memory", backend].ask(self.cases.index(case), self.effort.timeout)
            tick()
            status = Status(reply.pop("status"))
            timed[case, backend] = Timed(status, reply.pop("error", ""))
            exact[case, backend] = reply
        self._spread_wrong(group, timed)
        self._time(timed, tick)
        found: list[Row] = []
        for case in group.cases:
            at = {b: series for (c, b), series in timed.items() if c == case}
            found += rows(case, at, {b: v for (c, b), v in exact.items() if c == case}, environment)
        return [{**row, **environment, **self.judged[row["backend"]].as_row()} for row in found]

    def answers(self, group: Group) -> int:
        """How many answers of workers the group takes, if none fails."""
        asked = sum(("memory", backend) in self.workers for _, backend in pairs(group, self.judged))
        return asked * (1 + self.effort.rounds)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.stop()

    def _spread_wrong(self, group: Group, timed: dict[tuple[Case, str], Timed]) -> None:
        """Wrong in one mode is wrong in all: no time of a wrong layer is ever taken."""
        for backend in self.judged:
            wrong = [t for (_, b), t in timed.items() if b == backend and t.status is Status.WRONG]
            for case in group.cases if wrong else ():
                timed[case, backend] = wrong[0]

    def _time(self, timed: dict[tuple[Case, str], Timed], tick: Callable[[], None]) -> None:
        """The backends take turns. A steady case gets no more of them, so that all its series have as many rounds."""
        steady: set[Case] = set()
        for nth in range(self.effort.rounds):
            if nth >= FEWEST_ROUNDS:
                steady |= _steady(timed)
            turn = [at for at in timed if timed[at].status is Status.OK and at[0] not in steady]
            self.random.shuffle(turn)
            for at in turn:
                case, backend = at
                effort = {"samples": self.effort.samples, "seconds": self.effort.seconds}
                reply = self.workers["time", backend].ask(self.cases.index(case), self.effort.timeout, **effort)
                tick()
                timed[at] = _with(timed[at], reply)
        for at, series in timed.items():
            if at[0] in steady and series.status is Status.OK:
                timed[at] = replace(series, stopped="spread")


def _with(before: Timed, reply: Reply) -> Timed:
    """One round more; a round that fails takes the whole series with it."""
    if reply["status"] is not Status.OK:
        return Timed(Status(reply["status"]), reply.get("error", ""))
    return Timed(
        rounds=[*before.rounds, [1e3 * s for s in reply["seconds"]]],
        first_ms=before.first_ms if reply["first"] is None else 1e3 * reply["first"],
        warmup=before.warmup + reply["warmup"],
        stopped="time" if "time" in {before.stopped, reply["stopped"]} else "samples",
        timer=reply["timer"],
    )


def _steady(timed: dict[tuple[Case, str], Timed]) -> set[Case]:
    """The cases of which every series is steady."""
    ok = [(case, series.steady) for (case, _), series in timed.items() if series.status is Status.OK]
    return {case for case, _ in ok} - {case for case, steady in ok if not steady}


@contextmanager
def running(*arguments: Any, **named: Any) -> Iterator[Local]:
    """A ``Local`` whose processes are gone afterwards, whatever happened."""
    engine = Local(*arguments, **named)
    try:
        yield engine
    finally:
        engine.close()
