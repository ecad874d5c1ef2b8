"""Where a history steps from one level to another: seeded binary segmentation with a robust CUSUM, all series at once.

Kovács, Bühlmann, Li and Munk, Seeded binary segmentation, Biometrika 110, 2023: windows of the lengths n, n/2, n/4 ...,
each overlapping the next by half, are split where their two parts differ most; the most certain split is kept, then the
next one whose window does not hold a kept one; and what lies between kept ones is split again. So a rise that was
mended soon is found as well as one that stayed.

The statistic of a split after t of n runs is Page's CUSUM, standardised: |c_t - t/n c_n| / sqrt(t (n - t) / n), with c
the cumulative sum of residuals in units of their noise. Residuals are clipped (Huber's function), so that a run gone
astray weighs little. The noise is the median absolute difference of neighbouring runs, which a step does not inflate,
or that of the typical series, where this is more: few runs know their noise badly, all series together know it well.
The threshold is the normal quantile over the number of splits tried (Bonferroni). A level has three runs at least, so
that no run alone makes one, and the newest level two, so that a step is found on the second night. Levels that differ
by no more than the gate are joined again: what is certain and small is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.statistics import Floats

ALPHA = 0.001  # of a false step per series, before the gate is applied, for noise without memory
FEWEST = 3  # runs of a level
NEWEST = 2  # of the newest one
SHORTEST = 8  # runs in a window; a shorter history has no steps: comparing two runs is for that
CLIP = 3.5  # in units of the noise

Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Segment:
    """From run ``start`` on (an index into the history), until the next one, the median is ``level``."""

    start: int
    level: float


def exact(values: Floats) -> list[list[Segment]]:
    """Segments of figures without noise, (series, runs) with NaN where a run has none: every change is a step."""
    found = []
    for row in values:
        there = np.flatnonzero(~np.isnan(row))
        known = row[there]
        first = np.ones(len(known), dtype=bool)
        first[1:] = known[1:] != known[:-1]
        found.append([Segment(int(start), float(row[start])) for start in there[first]])
    return found


def segments(values: Floats, gate: float) -> list[list[Segment]]:
    """Segments of noisy figures, none negative, (series, runs) with NaN where a run has none, oldest run first.

    ``gate`` is the smallest relative difference of levels that counts, 0.04 for 4 %.
    """
    order, x = _aligned(values)
    first = np.sum(np.isnan(x), axis=1)
    splits = _splits(x, _noise(x), x.shape[1] - first)
    found = []
    for given, row, at, begin, of in zip(values, x, splits, first, order, strict=True):
        kept = of[_joined(row, [int(begin), *at], gate)] if begin < len(row) else []
        levels = [np.nanmedian(part) for part in np.split(given, kept)[1:]]
        found.append([Segment(int(start), float(level)) for start, level in zip(kept, levels, strict=True)])
    return found


def _splits(x: Floats, noise: Floats, count: Ints) -> list[list[int]]:
    """Where segments after the first one begin, per series, in order."""
    runs = x.shape[1]
    lengths = [runs >> k for k in range(runs.bit_length()) if runs >> k >= SHORTEST]
    threshold = stats.norm.isf(ALPHA / (4 * np.maximum(count, 1) * max(len(lengths), 1)))  # windows overlap: twice
    candidates: list[list[tuple[float, int, int, int]]] = [[] for _ in x]
    for length in lengths:
        for end in range(runs, length - 1, -(length // 2)):
            begin = end - length if end - length >= length // 2 else 0  # what is left over joins the oldest window
            statistic, at = _best(x[:, begin:end], noise, NEWEST if end == runs else FEWEST)
            for i in np.flatnonzero((statistic > threshold) & (count >= SHORTEST)):
                candidates[i].append((float(statistic[i]), begin + int(at[i]), begin, end))
    chosen = [_chosen(each) for each in candidates]
    for i in np.flatnonzero([bool(each) for each in chosen]):
        chosen[i] = _again(
            x[i : i + 1], noise[i : i + 1], [runs - int(count[i]), *chosen[i], runs], float(threshold[i])
        )
    return chosen


def _best(x: Floats, noise: Floats, after: int) -> tuple[Floats, Ints]:
    """The largest statistic of each series in one window (series, length), and the index that then begins anew.

    There are ``after`` runs at least from that index on.
    """
    there = ~np.isnan(x)
    n = there.sum(axis=1)[:, None]
    # NaN sorts last
    middle = np.take_along_axis(np.sort(x, axis=1), np.maximum(n - 1, 0) // 2, axis=1)
    scaled = np.clip((x - middle) / noise[:, None], -CLIP, CLIP)
    total = np.cumsum(np.where(there, scaled, 0.0), axis=1)
    t = np.cumsum(there, axis=1)
    inside = (t >= FEWEST) & (t <= n - after)
    weight = np.sqrt(np.where(inside, t * (n - t), 1) / np.maximum(n, 1))
    statistic = np.where(inside, np.abs(total - t / np.maximum(n, 1) * total[:, -1:]) / weight, 0.0)
    best = statistic.argmax(axis=1)
    return np.take_along_axis(statistic, best[:, None], axis=1)[:, 0], best + 1


def _chosen(candidates: list[tuple[float, int, int, int]]) -> list[int]:
    """The most certain first; a window that holds a chosen start says nothing more."""
    chosen: list[int] = []
    for _, at, begin, end in sorted(candidates, reverse=True):
        if not any(begin < other < end or abs(at - other) < FEWEST for other in chosen):
            chosen.append(at)
    return sorted(chosen)


def _again(x: Floats, noise: Floats, bounds: list[int], threshold: float) -> list[int]:
    """The inner ones of the bounds of one series (1, runs), and those at which the parts between them split again."""
    at = 0
    while at + 1 < len(bounds):
        begin, end = bounds[at : at + 2]
        statistic, inside = _best(x[:, begin:end], noise, NEWEST if end == x.shape[1] else FEWEST)
        if statistic[0] > threshold:
            bounds.insert(at + 1, begin + int(inside[0]))
        else:
            at += 1
    return bounds[1:-1]


def noise(values: Floats) -> Floats:
    """Relative standard deviation (series,) of positive figures (series, runs) from run to run, steps left aside."""
    return _noise(_aligned(values)[1])


def _aligned(values: Floats) -> tuple[Ints, Floats]:
    """Logarithms with NaN moved to the left, so that the newest of every series align; and where each came from."""
    order = np.argsort(~np.isnan(values), axis=1, kind="stable")
    positive = np.maximum(values, np.finfo(np.float64).tiny)  # memory may be 0; NaN stays
    return order, np.log(np.take_along_axis(positive, order, axis=1))


def _noise(x: Floats) -> Floats:
    apart = np.sort(np.abs(np.diff(x, axis=1)), axis=1)  # NaN last
    count = np.sum(~np.isnan(apart), axis=1)
    known = count > 0
    noise = np.zeros(len(x))
    middle = np.maximum(count - 1, 0) // 2
    noise[known] = apart[known, middle[known]] / (np.sqrt(2) * stats.norm.ppf(0.75))
    typical = float(np.median(noise[known])) if known.any() else 0.0
    return np.maximum(np.maximum(noise, typical), 1e-12)


def _joined(x: Floats, starts: list[int], gate: float) -> list[int]:
    """What is left of the starts after the least different neighbours were joined until all differ beyond the gate."""
    kept = list(starts)
    while True:
        levels = np.array([np.median(part) for part in np.split(x, kept)[1:]])
        apart = np.abs(np.diff(levels))
        if not len(apart) or apart.min() > np.log1p(gate):
            return _placed(x, kept, levels)
        del kept[int(apart.argmin()) + 1]


def _placed(x: Floats, starts: list[int], levels: Floats) -> list[int]:
    """Each start moved by one where the run there is closer to the other level: clipping blurs large steps a little."""
    placed = starts[:1]
    for start, before, after in zip(starts[1:], levels[:-1], levels[1:], strict=True):
        middle, up = (before + after) / 2, after > before
        late, early = (x[start] > middle) != up, (x[start - 1] > middle) == up
        move = 1 if late and not early and start + 1 < len(x) else -1 if early and not late else 0
        placed.append(start + move)
    return placed
