"""Medians with intervals that admit to drift: samples of one round lie closer together than rounds do.

A run takes its samples in interleaved rounds. What a round has in common (clock, cache, neighbours) does not average
out over its samples, so samples are not independent and the usual bootstrap promises too much. Here whole rounds are
drawn (block bootstrap; Davison and Hinkley, Bootstrap Methods, 1997, section 3.8). With k rounds the spread of the
draws is too narrow, since k are few; the interval is widened around the median by sqrt(k / (k - 1)) t(df) / z, as in
Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 1000

Floats = NDArray[np.float64]
Rounds = Sequence[Sequence[float] | Floats]


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval low..high, and the spread p20..p80 of the ``n`` samples behind it."""

    median: float
    low: float
    high: float
    p20: float
    p80: float
    n: int

    def within(self, gate: float) -> bool:
        """As a ratio: no change beyond ``gate`` (0.04: four per cent) in either direction is compatible with it."""
        return 1 / (1 + gate) <= self.low and self.high <= 1 + gate


def interval(samples_by_round: Rounds, seed: int = 0) -> Interval:
    """The median of all samples, in their unit.

    One round alone says nothing of the drift between rounds: its interval is that of the samples only.

    Raises:
        ValueError: there is no sample.
    """
    rounds = _filled(samples_by_round)
    pooled = np.concatenate(rounds)
    median = float(np.median(pooled))
    drawn = _medians(rounds, np.random.default_rng(seed))
    low, high = _widened(median, drawn, _factor(len(rounds)))
    p20, p80 = np.quantile(pooled, (0.2, 0.8))
    return Interval(median, low, high, float(p20), float(p80), len(pooled))


def spread(samples_by_round: Rounds) -> float:
    """p80 - p20 of all samples, over their median.

    Raises:
        ValueError: there is no sample.
    """
    p20, median, p80 = np.quantile(np.concatenate(_filled(samples_by_round)), (0.2, 0.5, 0.8))
    return float((p80 - p20) / median)


def ratio(a_by_round: Rounds, b_by_round: Rounds, seed: int = 0) -> Interval:
    """The median of ``a`` over the median of ``b``, dimensionless; p20 and p80 are those of ``a`` over b's median.

    Rounds of a and b are drawn independently, as for two runs. Within one run divide each round of a by the median of
    the same round of b first (see ``over``), so that what the round has in common cancels.

    Raises:
        ValueError: there is no sample, or the samples are not positive.
    """
    a, b = _filled(a_by_round), _filled(b_by_round)
    pooled, below = np.concatenate(a), np.concatenate(b)
    if min(pooled.min(), below.min()) <= 0:
        raise ValueError("a ratio needs positive samples")
    scale = float(np.median(below))
    median = float(np.median(pooled)) / scale
    generator = np.random.default_rng(seed)
    # Widened as logarithms, so that exchanging a and b gives the reciprocal interval and low stays above zero.
    drawn = np.log(_medians(a, generator)) - np.log(_medians(b, generator))
    low, high = np.exp(_widened(np.log(median), drawn, _factor(len(a), len(b))))
    p20, p80 = np.quantile(pooled, (0.2, 0.8)) / scale
    return Interval(median, float(low), float(high), float(p20), float(p80), min(len(pooled), len(below)))


def over(a_by_round: Rounds, b_by_round: Rounds) -> list[Floats]:
    """Samples of a, round by round, over the median of b's same round; over b's median where the rounds do not match.

    Raises:
        ValueError: there is no sample.
    """
    a, b = _filled(a_by_round), _filled(b_by_round)
    if len(a) == len(b):
        return [x / np.median(y) for x, y in zip(a, b, strict=True)]
    scale = np.median(np.concatenate(b))
    return [x / scale for x in a]


def split(samples: Sequence[float], rounds: Sequence[int] | None) -> list[Floats]:
    """Flat samples as rounds of the recorded sizes; one round where none were recorded or they do not add up."""
    flat = np.asarray(samples, dtype=np.float64)
    if not rounds or sum(rounds) != len(flat):
        return [flat]
    return np.split(flat, np.cumsum(rounds)[:-1])


def _filled(rounds: Rounds) -> list[Floats]:
    found = [np.asarray(samples, dtype=np.float64) for samples in rounds if len(samples)]
    if not found:
        raise ValueError("no samples")
    return found


def _medians(rounds: list[Floats], generator: np.random.Generator) -> Floats:
    """Medians (DRAWS,) of resamples: whole rounds with replacement; the samples, where there is one round only."""
    blocks = rounds if len(rounds) > 1 else [rounds[0][i : i + 1] for i in range(len(rounds[0]))]
    k, sizes = len(blocks), np.array([len(samples) for samples in blocks])
    padded = np.full((k, sizes.max()), np.inf)  # (k, m): padding sorts behind every sample
    for row, samples in zip(padded, blocks, strict=True):
        row[: len(samples)] = samples
    chosen = generator.integers(k, size=(DRAWS, k))
    ordered = np.sort(padded[chosen].reshape(DRAWS, -1), axis=1)  # (draws, k m)
    count = sizes[chosen].sum(axis=1)[:, None]
    middle = np.take_along_axis(ordered, np.concatenate([(count - 1) // 2, count // 2], axis=1), axis=1)
    return np.asarray(middle.mean(axis=1))


def _widened(centre: float, drawn: Floats, factor: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(centre - factor * max(centre - low, 0)), float(centre + factor * max(high - centre, 0))


@cache
def half_widths(*rounds: int) -> float:
    """Standard errors in half an interval: Student's t, to which each side brings its rounds less one."""
    freedom = sum(rounds) - len(rounds) if min(rounds) > 1 else np.inf
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _factor(*rounds: int) -> float:
    """How much too narrow a bootstrap over so few rounds is."""
    k = min(rounds)
    return float(np.sqrt(k / (k - 1))) * half_widths(*rounds) / half_widths(1) if k > 1 else 1.0
