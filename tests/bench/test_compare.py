"""Verdicts, one rule at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_runs import QUIET, case, row, run, times

from bench.evidence import ALPHA
from bench.record import METRICS
from bench.regression import DERIVED, EXACT, MEMORY_GATES, Change, Verdict, compare
from bench.store import table
from conformance.discovery import UsageError

Rows = list[dict[str, Any]]


def compared(old: Rows, new: Rows) -> dict[tuple[str, str], Change]:
    return {(each.backend, each.metric): each for each in compare(table(old), table(new)).changes}


def quiet(seed: int, edit: Callable[[dict[str, Any]], None] = lambda _: None) -> Rows:
    rows = times(np.random.default_rng(seed), QUIET, 1)
    for each in rows:
        edit(each)
    return rows


def scaled(factor: float, *backends: str) -> Callable[[dict[str, Any]], None]:
    def edit(each: dict[str, Any]) -> None:
        if each["backend"] in backends:
            each["samples"] = [factor * x for x in each["samples"]]
            each["value"] *= factor

    return edit


class TestExact:
    @pytest.mark.parametrize("metric", sorted(EXACT))
    @pytest.mark.parametrize("step", [-1.0, 1.0])
    def test_the_smallest_change_counts(self, metric: str, step: float) -> None:
        found = compared([row(0, "a", metric, 1e12)], [row(0, "a", metric, 1e12 + step)])
        expected = Verdict.WORSE if step > 0 else Verdict.BETTER
        assert found["a", metric].verdict is (Verdict.CHANGED if METRICS[metric].better == "none" else expected)

    def test_equal_is_the_same(self) -> None:
        assert compared([row(0, "a", "flops", 7.0)], [row(0, "a", "flops", 7.0)])["a", "flops"].verdict is Verdict.SAME


class TestMemory:
    @pytest.mark.parametrize(("metric", "gate"), MEMORY_GATES.items())
    def test_each_figure_has_its_gate(self, metric: str, gate: float) -> None:
        for moved, verdict in ((0.9 * gate, Verdict.SAME), (1.1 * gate, Verdict.WORSE), (-1.1 * gate, Verdict.BETTER)):
            found = compared([row(0, "a", metric, 1e9)], [row(0, "a", metric, 1e9 * (1 + moved))])
            assert found["a", metric].verdict is verdict

    def test_from_nothing_to_something(self) -> None:
        found = compared([row(0, "a", "peak_alloc_delta", 0.0)], [row(0, "a", "peak_alloc_delta", 512.0)])
        assert found["a", "peak_alloc_delta"].verdict is Verdict.WORSE

    def test_samples_that_overlap_show_nothing(self) -> None:
        old = row(0, "a", "peak_reserved", 100.0, samples=[100.0, 100.0, 104.0])
        new = row(0, "a", "peak_reserved", 103.0, samples=[103.0, 103.0, 103.0])
        assert compared([old], [new])["a", "peak_reserved"].verdict is Verdict.AMBIGUOUS

    def test_a_process_that_held_other_cases_before_shows_nothing(self) -> None:
        old, new = ([row(0, "a", "peak_reserved", v)] for v in (1e8, 2e8))
        other = [row(1, "a", "peak_reserved", 1e8)]
        assert compared(old, new)["a", "peak_reserved"].verdict is Verdict.WORSE
        found = compare(table(old), table([*new, *other])).changes
        assert [each.verdict for each in found] == [Verdict.AMBIGUOUS, Verdict.NEW]


class TestTime:
    def test_a_slowdown_and_a_speedup(self) -> None:
        found = compared(quiet(1), quiet(2, scaled(1.06, "a")))
        assert found["a", "time_ms"].verdict is Verdict.SLOWER
        assert found["b", "time_ms"].verdict is Verdict.SAME
        assert compared(quiet(1), quiet(2, scaled(1 / 1.06, "a")))["a", "time_ms"].verdict is Verdict.FASTER

    def test_below_the_gate_it_is_the_same(self) -> None:
        assert compared(quiet(1), quiet(2, scaled(1.01, "a")))["a", "time_ms"].verdict is Verdict.SAME

    def test_a_slower_machine_is_no_slower_backend(self) -> None:
        found = compare(table(quiet(1)), table(quiet(2, scaled(1.2, "a", "b", "frozen"))))
        assert {each.backend: each.verdict for each in found.changes if each.metric == "time_ms"} == {
            "a": Verdict.SAME,
            "b": Verdict.SAME,
            "frozen": Verdict.AMBIGUOUS,
        }
        assert not found.regressed
        assert found.floor == pytest.approx([1.2], rel=0.02)

    def test_a_faster_floor_is_no_slower_backend(self) -> None:
        def edit(each: dict[str, Any]) -> None:
            scaled(0.8, "frozen")(each)
            scaled(1.012, "a")(each)

        change = compared(quiet(1), quiet(1, edit))["a", "time_ms"]
        assert change.p is not None
        assert change.p < ALPHA
        assert (change.verdict, change.note) == (Verdict.AMBIGUOUS, "the time itself: +1.2%")

    @pytest.mark.parametrize("new", [2.0, 2.01, 9.0])
    def test_what_is_timed_once_a_run_is_not_judged(self, new: float) -> None:
        for samples in (None, [1.0]):  # with and without a list of the one sample
            found = compare(*(table([row(0, "a", "first_ms", v, samples=samples, n=1)]) for v in (2.0, new)))
            (change,) = found.changes
            assert (change.verdict, change.old, change.new) == (Verdict.UNJUDGED, 2.0, new)
            assert not found.regressed

    def test_a_first_call_that_fails_is_broken_all_the_same(self) -> None:
        old, new = row(0, "a", "first_ms", 2.0, n=1), row(0, "a", "first_ms", None, status="crash")
        assert compared([old], [new])["a", "first_ms"].verdict is Verdict.BROKEN

    def test_too_few_samples_show_nothing_however_far_apart(self) -> None:
        old, new = ([row(0, "a", "first_ms", v, samples=[v, v, v], rounds=[1, 1, 1], n=3)] for v in (1.0, 9.0))
        change = compared(old, new)["a", "first_ms"]
        assert change.verdict is Verdict.AMBIGUOUS

    def test_what_not_all_rounds_show_is_ambiguous(self) -> None:
        def disturb(each: dict[str, Any]) -> None:
            if each["backend"] == "a":
                each["samples"] = [x * (1.5 if n >= 10 else 1.0) for n, x in enumerate(each["samples"])]
                each["value"] = float(np.median(each["samples"]))

        change = compared(quiet(1), quiet(2, disturb))["a", "time_ms"]
        assert change.new is not None
        assert change.old is not None
        assert change.new > 1.4 * change.old
        assert change.verdict is Verdict.AMBIGUOUS

    def test_without_a_floor_the_time_itself_is_judged_and_said_to_be(self) -> None:
        old, new = ([r for r in rows if r["backend"] == "a"] for rows in (quiet(1), quiet(2, scaled(1.1, "a"))))
        change = compared(old, new)["a", "time_ms"]
        assert (change.verdict, change.note) == (Verdict.SLOWER, "no floor ran along")

    def test_without_samples_nothing_is_judged(self) -> None:
        old, new = [row(0, "a", "time_ms", 1.0)], [row(0, "a", "time_ms", 2.0)]
        assert compared(old, new)["a", "time_ms"].verdict is Verdict.UNJUDGED

    @pytest.mark.parametrize("metric", sorted(DERIVED))
    def test_one_slowdown_is_told_once(self, metric: str) -> None:
        old = [*quiet(1), row(0, "a", metric, 1.0)]
        assert ("a", metric) not in compared(old, [*quiet(1), row(0, "a", metric, 2.0)])


class TestSeries:
    @pytest.mark.parametrize("status", ["oom", "wrong", "crash", "timeout", "unsupported"])
    def test_a_lost_figure_is_broken_and_the_reverse_fixed(self, status: str) -> None:
        there, lost = row(0, "a", "time_ms", 1.0), row(0, "a", "time_ms", None, status=status, error="why\nit is")
        broken = compare(table([there]), table([lost]))
        assert broken.changes[0].verdict is Verdict.BROKEN
        assert broken.changes[0].note == f"ok → {status}: why it is"
        assert broken.regressed
        fixed = compare(table([lost]), table([there]))
        assert fixed.changes[0].verdict is Verdict.FIXED
        assert not fixed.regressed
        assert not compare(table([lost]), table([lost])).regressed

    def test_one_status_for_another(self) -> None:
        old, new = (row(0, "a", "flops", None, status=status) for status in ("oom", "crash"))
        assert compared([old], [new])["a", "flops"].verdict is Verdict.CHANGED

    def test_missing_and_new_are_listed(self) -> None:
        kept, gone, come = row(0, "a", "flops", 1.0), row(0, "b", "flops", 1.0), row(0, "c", "flops", 1.0)
        found = compared([kept, gone], [kept, come])
        assert found["b", "flops"].verdict is Verdict.MISSING
        assert found["c", "flops"].verdict is Verdict.NEW

    def test_regressions_come_first_and_large_ones_before_small_ones(self) -> None:
        values = {"a": 2.0, "b": 3.0, "c": 0.5, "d": 1.0}
        old, new = (
            [row(0, name, "flops", v) for name, v in each.items()] for each in (dict.fromkeys(values, 1.0), values)
        )
        assert [each.backend for each in compare(table(old), table(new)).changes] == ["b", "a", "c", "d"]

    @pytest.mark.parametrize("where", [{"threads": 4}, {"device_name": "another cpu"}])
    def test_another_place_is_another_series(self, where: dict[str, Any]) -> None:
        old, new = [row(0, "a", "flops", 1.0)], [row(0, "a", "flops", 2.0, **where)]
        with pytest.raises(UsageError, match="in common"):
            compare(table(old), table(new))
        found = compare(table(old), table([*old, *new])).changes
        assert [each.verdict for each in found] == [Verdict.NEW, Verdict.SAME]

    def test_a_series_twice_is_refused(self) -> None:
        with pytest.raises(UsageError, match="twice"):
            compare(table([row(0, "a", "flops", 1.0)] * 2), table([row(0, "a", "flops", 1.0)]))


def test_a_run_is_the_same_as_itself() -> None:
    same = run(np.random.default_rng(0), cases=2)
    found = compare(same, same)
    assert {each.verdict for each in found.changes} == {Verdict.SAME}
    assert len(found.changes) == same.num_rows
    assert {each.case_id for each in found.changes} == {case(0).case_id, case(1).case_id}
