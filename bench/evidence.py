"""Is a time slower? Two runs of one series, and what can be believed of their difference.

A rank test alone cannot say: with thirty samples it calls any drift of the machine significant. A time is slower (or
faster) only if all of this holds, and where the answer is not clear it is ambiguous:

- relative to the bare frozen layer of the same run, round by round (what disturbs a round disturbs both), the median
  moved beyond the gate, and its interval, which knows how far rounds lie apart, excludes no change;
- the time itself moved the same way, by half the gate at least: a disturbed floor is no slowdown. Half, since the
  machine's drift between the runs is in it: with the whole gate, 63 instead of 82 of 100 slowdowns of 5 % were found
  (simulated with the usual noise of ``tests/bench/made_runs.py``), with no false alarm less;
- Mann-Whitney gives p below ``ALPHA`` for both.

The gate rises where the runs are too noisy for it: to ``MARGIN`` standard errors, as they are typical of all series
compared. A series of six rounds knows its own noise badly, all together know it well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from bench.statistics import Floats, Interval, half_widths, over, ratio

ALPHA = 0.002
MARGIN = 4.0  # of a normal variable, one in 16,000 lies further out: some runs of hundreds of series may be compared


@dataclass(frozen=True)
class Evidence:
    """Ratios new over old: of the time itself, and of its multiple of the floor (the same where no floor ran along)."""

    itself: Interval
    judged: Interval
    p: float  # the larger of both
    error: float  # standard error of the judged ratio's logarithm
    floored: bool

    def direction(self, gate: float) -> int:
        """1 slower, -1 faster, 0 neither is shown.

        Where the floor itself moved beyond the gate, a change must be larger than that: a machine that gives one layer
        a sixth more speed does not give every other the same.
        """
        moved = abs(float(np.log(self.itself.median / self.judged.median)))  # of the floor
        least = max(float(np.log1p(gate)), moved)
        for sign in (1, -1):
            judged, itself = sign * np.log(self.judged.median), sign * np.log(self.itself.median)
            excludes = self.judged.low > 1 if sign > 0 else self.judged.high < 1
            if judged > least and itself > np.log1p(gate / 2) and excludes and self.p < ALPHA:
                return sign
        return 0


def weigh(
    old: list[Floats], new: list[Floats], old_floor: list[Floats] | None, new_floor: list[Floats] | None
) -> Evidence:
    """Evidence from positive samples of a time, round by round; ``None`` where no floor ran along.

    Raises:
        ValueError: there is no sample.
    """
    itself, p = ratio(new, old), _p(old, new)
    if not old_floor or not new_floor:
        return Evidence(itself, itself, p, _error(itself, old, new), floored=False)
    a, b = over(old, old_floor), over(new, new_floor)
    judged = ratio(b, a)
    return Evidence(itself, judged, max(p, _p(a, b)), _error(judged, a, b), floored=True)


def gate_in_force(gate: float, found: Iterable[Evidence]) -> float:
    """The gate asked for, or what the noise of these runs demands."""
    errors = [each.error for each in found]
    return max(gate, float(np.expm1(MARGIN * np.median(errors)))) if errors else gate


def _p(a: list[Floats], b: list[Floats]) -> float:
    return float(mannwhitneyu(np.concatenate(a), np.concatenate(b)).pvalue)


def _error(moved: Interval, old: list[Floats], new: list[Floats]) -> float:
    return float(np.log(moved.high / moved.low)) / 2 / half_widths(len(old), len(new))
