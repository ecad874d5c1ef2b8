"""Why a series of samples ends: enough of them, no time left, or so close together that more would tell little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from bench.cases import Case, Mode
from bench.engines import local
from bench.engines.local import Effort, Group, running
from bench.figures import Row, Timed
from bench.operations import Operation
from bench.record import FROZEN, Status
from bench.statistics import spread
from bench.timing import Series, sample
from bench.verdicts import CONFORMING, Verdict

STEP, FORWARD = (Case("tiny", "q", 48, 32, 4, 1, 64, mode) for mode in (Mode.STEP, Mode.FORWARD))
QUIET, NOISY = (1.0, 1.001, 1.002), (1.0, 1.1, 1.2)  # seconds of each turn


class Clock:
    """Stands still but for what is told to take time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def flush(self) -> None:
        pass

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Pedantic:
    """What ``sample`` asks of pytest-benchmark."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def pedantic(self, run: Callable[..., Any], *, setup: Callable[[], Any], rounds: int, iterations: int) -> None:
        taken = []
        for _ in range(rounds * iterations):
            arguments, _named = setup()
            start = self.clock()
            run(*arguments)
            taken.append(self.clock() - start)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=taken))


def series(*, run: float, setup: float = 0.0, warm: bool = False, samples: int = 6, seconds: float = 1.0) -> Series:
    clock = Clock()
    operation = Operation(lambda: clock.pass_by(setup), lambda _: clock.pass_by(run), warm=warm)
    return sample(Pedantic(clock), operation, clock, samples=samples, seconds=seconds)  # type: ignore[arg-type]


def test_samples_that_were_asked_for() -> None:
    found = series(run=0.125, samples=6)
    assert (found.seconds, found.first, found.warmup, found.stopped) == ([0.125] * 6, 0.125, 2, "samples")


def test_time_that_is_up() -> None:
    found = series(run=0.25, samples=6)
    assert (len(found.seconds), found.stopped) == (4, "time")


def test_time_for_making_things_fresh_counts() -> None:
    found = series(run=0.125, setup=0.375, samples=6)
    assert (found.seconds, found.stopped) == ([0.125] * 2, "time")


def test_two_samples_at_least() -> None:
    found = series(run=60.0, warm=True)
    assert (len(found.seconds), found.first, found.warmup, found.stopped) == (2, None, 1, "time")


def test_spread_is_that_of_the_recorded_quantiles() -> None:
    rounds = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert spread(rounds) == pytest.approx((5.0 - 2.0) / 3.5)
    assert spread([[7.0] * 4]) == 0


@pytest.mark.parametrize(
    ("samples", "width", "steady"), [(10, 0.004, True), (9, 0.004, False), (10, 0.006, False), (100, 0.0, True)]
)
def test_steady(samples: int, width: float, steady: bool) -> None:  # noqa: FBT001
    within = width / 0.6  # from p20 to p80 of evenly laid samples
    rounds = [list(np.linspace(1 - within / 2, 1 + within / 2, samples))]
    assert Timed(rounds=rounds).steady is steady


class Scripted:
    """A worker that answers at once, with samples that were made up."""

    seconds: ClassVar[dict[tuple[str, Mode], tuple[float, ...]]] = {}
    fails: ClassVar[dict[tuple[str, Mode], Status]] = {}
    stopped = "samples"

    def __init__(self, quantity: str, backend: str, cases: list[Case], *_: object) -> None:
        self.quantity, self.backend, self.cases = quantity, backend, cases

    def ask(self, nth: int, timeout: float, **asked: Any) -> Row:
        at = self.backend, self.cases[nth].mode
        if at in self.fails:
            return {"status": self.fails[at], "error": "made up"}
        if self.quantity == "memory":
            return {"status": Status.OK}
        seconds = [*self.seconds.get(at, QUIET)] * 2
        return {
            "status": Status.OK,
            "seconds": seconds[: asked["samples"]],
            "first": None,
            "warmup": 1,
            "stopped": self.stopped,
            "timer": "made up",
        }

    def stop(self) -> None:
        pass


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[tuple[str, str], Row]]:
    """The time_ms rows of a scripted run, by backend and mode."""

    def run(rounds: int, *, samples: int = 6, stopped: str = "samples", **script: Any) -> dict[tuple[str, str], Row]:
        worker = type("Worker", (Scripted,), {"stopped": stopped, **script})
        monkeypatch.setattr(local, "Worker", worker)
        judged = {FROZEN: Verdict("not judged"), "a": Verdict(CONFORMING)}
        options: Any = {"device": "cpu", "threads": 1, "log": tmp_path / "log"}
        with running([STEP, FORWARD], judged, effort=Effort(rounds, samples), **options) as engine:
            rows = engine.measure(Group((STEP, FORWARD)), {})
        return {(row["backend"], row["mode"]): row for row in rows if row["metric"] == "time_ms"}

    return run


def test_spread_ends_a_case_of_which_all_series_are_steady(timed) -> None:  # noqa: ANN001
    rows = timed(9, seconds={("a", Mode.STEP): NOISY})
    for backend in (FROZEN, "a"):
        step, forward = rows[backend, "step"], rows[backend, "fwd"]
        assert (forward["rounds"], forward["stopped"]) == ([6] * 3, "spread")
        assert (step["rounds"], step["stopped"]) == ([6] * 9, "samples"), "as many rounds as the noisy one beside it"


def test_spread_of_few_samples_ends_nothing_yet(timed) -> None:  # noqa: ANN001
    rows = timed(9, samples=2, stopped="time")
    assert {(tuple(row["rounds"]), row["stopped"]) for row in rows.values()} == {((2,) * 5, "spread")}


def test_all_rounds_are_no_spread(timed) -> None:  # noqa: ANN001
    assert {(tuple(r["rounds"]), r["stopped"]) for r in timed(3).values()} == {((6,) * 3, "samples")}
    assert {(tuple(r["rounds"]), r["stopped"]) for r in timed(3, stopped="time").values()} == {((6,) * 3, "time")}


def test_what_failed_keeps_no_case_going(timed) -> None:  # noqa: ANN001
    rows = timed(9, fails={("a", Mode.STEP): Status.CRASH}, seconds={("a", Mode.FORWARD): NOISY})
    assert rows["a", "step"]["status"] == "crash"
    assert rows["a", "step"].get("value") is None
    assert (rows[FROZEN, "step"]["rounds"], rows[FROZEN, "step"]["stopped"]) == ([6] * 3, "spread")
    assert rows[FROZEN, "fwd"]["stopped"] == "samples"
