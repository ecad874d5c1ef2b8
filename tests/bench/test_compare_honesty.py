"""The comparison against itself: no alarm where nothing changed, and how much of a slowdown it takes to be found.

The model of the noise stands in ``made_runs``. Measured with more draws than the tests make, at the default gate of
4 %: where nothing changed, 1 alarm in 3,000 comparisons of 12 times each (with the noise of a shared machine);
slowdowns were found per series and, of 100 runs of six cases that were all slower, in so many:

| noise  | rounds | 5 %   | runs | 6 %   | 8 %   |
| quiet  | 3      | 99.7 % | 100 | 100 % | 100 % |
| usual  | 3      | 77 %  | 98   | 95 %  | 100 % |
| usual  | 5      | 90 %  | 100  | 99.7 % | 99.8 % |
| shared | 3      | 42 %  | 89   | 71 %  | 92 %  |
| shared | 5      | 69 %  | 97   | 85 %  | 98 %  |

A slowdown of 5 % lies one point beyond the gate: where the ratio of two runs has a standard error of a point, one in
six is measured below it, and no test can call those slower without a lower gate.
"""

import numpy as np
import pytest
from made_runs import QUIET, SHARED, USUAL, Noise, run

from bench.record import FROZEN
from bench.regression import Comparison, Verdict, compare
from bench.store import table


def of(found: Comparison, backend: str) -> list[Verdict]:
    return [each.verdict for each in found.changes if (each.backend, each.metric) == (backend, "time_ms")]


@pytest.mark.parametrize("noise", [QUIET, USUAL, SHARED], ids=["quiet", "usual", "shared"])
def test_no_alarm_in_a_hundred_comparisons_of_the_same(noise: Noise) -> None:
    generator = np.random.default_rng(20)
    for _ in range(100):
        found = compare(run(generator, noise, cases=3), run(generator, noise, cases=3))
        assert not found.regressed
        assert not any(each.verdict.improvement for each in found.changes)


def test_without_the_floor_there_would_be_alarms() -> None:
    """That the noise of the test above is no easy one: the machine's drift alone exceeds the gate."""
    generator, alarms = np.random.default_rng(20), 0
    for _ in range(30):
        old, new = (
            [r for r in run(generator, SHARED, cases=4).to_pylist() if r["backend"] != FROZEN] for _ in range(2)
        )
        alarms += compare(table(old), table(new)).regressed
    assert alarms >= 3


@pytest.mark.parametrize(
    ("noise", "shift", "power", "runs"),
    [(QUIET, 0.05, 0.98, 30), (USUAL, 0.05, 0.70, 28), (USUAL, 0.08, 0.98, 30), (SHARED, 0.08, 0.85, 28)],
    ids=["quiet-5", "usual-5", "usual-8", "shared-8"],
)
def test_a_planted_slowdown_is_found(noise: Noise, shift: float, power: float, runs: int) -> None:
    """``power``: of 180 series; ``runs``: of 30 comparisons that exit with 1; what was left alone never alarms."""
    generator = np.random.default_rng(21)
    found = [compare(run(generator, noise, cases=6), run(generator, noise, cases=6, shift=shift)) for _ in range(30)]
    verdicts = [verdict for each in found for verdict in of(each, "a")]
    assert np.mean([verdict is Verdict.SLOWER for verdict in verdicts]) >= power
    assert not {Verdict.FASTER} & set(verdicts)
    assert sum(each.regressed for each in found) >= runs
    assert {verdict for each in found for verdict in of(each, "b")} <= {Verdict.SAME, Verdict.AMBIGUOUS}


def test_a_planted_speedup_is_found() -> None:
    generator = np.random.default_rng(22)
    found = [compare(run(generator, USUAL, cases=6), run(generator, USUAL, cases=6, shift=-0.07)) for _ in range(10)]
    assert np.mean([verdict is Verdict.FASTER for each in found for verdict in of(each, "a")]) >= 0.95
    assert not any(each.regressed for each in found)


def test_planted_bytes_are_always_found() -> None:
    """One byte more is saved, and a copy of x (1 x 2048 floats, 0.2 % of the peak) is made: whatever the times do."""
    generator = np.random.default_rng(23)
    planted = {"saved_bytes": 1.0, "peak_alloc_delta": 8192.0}
    for _ in range(100):
        old, new = run(generator, SHARED), run(generator, SHARED).to_pylist()
        for each in new:
            if each["metric"] in planted:
                each["value"] += planted[each["metric"]]
                each["samples"] = each["samples"] and [each["value"]]
        found = compare(old, table(new))
        assert {each.metric for each in found.changes if each.verdict is Verdict.WORSE} == planted.keys()
