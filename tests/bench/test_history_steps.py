"""Steps in made-up histories: found where they are, and not where there are none."""

import numpy as np
import pytest

from bench import steps
from bench.statistics import Floats

GATE = 0.04


def noise(kind: str, series: int, runs: int) -> Floats:
    """Around 1; one per cent from run to run, whatever its kind."""
    generator = np.random.default_rng(8)
    x = generator.normal(0, 0.01, (series, runs))
    if kind == "heavy tails":
        x = 0.01 * generator.standard_t(3, (series, runs))
    if kind == "spikes":
        x += np.where(generator.random(x.shape) < 0.02, generator.exponential(0.3, x.shape), 0)
    if kind == "slow":
        for run in range(1, runs):
            x[:, run] += 0.6 * x[:, run - 1]
    return np.exp(x)


def stepped(values: Floats, gate: float = GATE) -> list[list[int]]:
    """Where segments begin after the first, per series."""
    return [[each.start for each in segments[1:]] for segments in steps.segments(values, gate)]


class TestFalseAlarms:
    @pytest.mark.parametrize("runs", [8, 20, 100])
    def test_before_the_gate_as_often_as_stated(self, runs: int) -> None:
        """ALPHA is 0.001; of 10,000 histories of 10 to 50 runs 0 to 2 had a step, of 4,000 of 150 runs one."""
        found = stepped(noise("normal", 4000, runs), gate=0.0)
        assert sum(map(bool, found)) <= 4000 * steps.ALPHA

    @pytest.mark.parametrize(("kind", "most"), [("normal", 0), ("heavy tails", 4), ("spikes", 8), ("slow", 4)])
    def test_hardly_any_after_the_gate(self, kind: str, most: int) -> None:
        """Of 2,000 histories. Slow noise breaks the promise of ALPHA: before the gate, a fourth of them have steps."""
        for runs in (10, 50, 150):
            assert sum(map(bool, stepped(noise(kind, 2000, runs)))) <= most

    def test_one_run_alone_is_no_step(self) -> None:
        for at in range(20):
            values = noise("normal", 50, 20)
            values[:, at] *= 1.5
            assert sum(map(bool, stepped(values))) <= 1


class TestFound:
    @pytest.mark.parametrize(("newest", "power"), [(2, 0.95), (3, 0.98), (8, 0.99)])
    def test_eight_per_cent_where_it_began(self, newest: int, power: float) -> None:
        """Noise of 1 % from run to run, 50 runs, the last ``newest`` of them 8 % slower; measured 97, 99 and 99.8 %."""
        values = noise("normal", 1000, 50)
        values[:, -newest:] *= 1.08
        assert np.mean([len(each) == 1 and abs(each[0] - (50 - newest)) <= 1 for each in stepped(values)]) >= power

    def test_a_rise_that_was_mended(self) -> None:
        values = noise("normal", 500, 100)
        values[:, 50:60] *= 1.1
        assert np.mean([each == [50, 60] for each in stepped(values)]) >= 0.9

    def test_both_directions_and_their_levels(self) -> None:
        values = noise("normal", 1, 60)
        values[:, 20:] *= 1.2
        values[:, 40:] *= 0.7
        (found,) = steps.segments(values, GATE)
        assert [each.start for each in found] == [0, 20, 40]
        assert [each.level for each in found] == pytest.approx([1, 1.2, 0.84], rel=0.01)

    def test_a_certain_step_below_the_gate_is_none(self) -> None:
        values = noise("normal", 100, 100)
        values[:, 50:] *= 1.03
        assert sum(map(bool, stepped(values))) == 0
        assert sum(map(bool, stepped(values, gate=0.01))) == 100

    def test_runs_that_a_series_lacks_do_not_shift_it(self) -> None:
        values = noise("normal", 3, 60)
        values[:, 40:] *= 1.2
        values[0, ::2] = np.nan
        values[1, :30] = np.nan
        assert stepped(values)[:2] == [[41], [40]]

    def test_memory_that_was_nothing(self) -> None:
        values = np.zeros((1, 20))
        values[0, 15:] = 512.0
        (found,) = steps.segments(values, 0.001)
        assert found == [steps.Segment(0, 0.0), steps.Segment(15, 512.0)]


class TestExact:
    def test_every_change_is_a_step(self) -> None:
        values = np.array([[np.nan, 5.0, 5.0, np.nan, 6.0, 6.0, 5.0]])
        assert steps.exact(values) == [[steps.Segment(1, 5.0), steps.Segment(4, 6.0), steps.Segment(6, 5.0)]]

    def test_nothing_has_no_segments(self) -> None:
        assert steps.exact(np.full((1, 3), np.nan)) == [[]]
        assert steps.segments(np.full((1, 3), np.nan), GATE) == [[]]


def test_a_short_history_has_one_level() -> None:
    assert stepped(np.array([[1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]])) == [[]]
