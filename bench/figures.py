"""Figures that follow from others of the same run: rates, ratios to the floor and to peft, the fraction of the roof."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.cases import TRAINING, Case, Mode
from bench.record import FROZEN, METRICS, Status
from bench.statistics import Interval, interval, over, ratio, spread

STEADY = 0.005  # the relative spread below which more samples would tell little
ENOUGH = 10  # samples, of which a rank test can still tell two runs apart

Row = dict[str, Any]


@dataclass
class Timed:
    """The samples of one case on one backend, in milliseconds, round by round; or the status that it ended with."""

    status: Status = Status.OK
    error: str = ""
    rounds: list[list[float]] = field(default_factory=list)
    first_ms: float | None = None
    warmup: int = 0
    stopped: str = "samples"
    timer: str = ""

    @property
    def steady(self) -> bool:
        """``ENOUGH`` samples or more, whose relative spread is below ``STEADY``."""
        return sum(map(len, self.rounds)) >= ENOUGH and spread(self.rounds) < STEADY


def rows(case: Case, timed: dict[str, Timed], exact: dict[str, Row], environment: Row) -> list[Row]:
    """The rows of one case for every backend in ``timed``.

    ``exact`` holds what ``bench.memory.measure`` gave, by backend.
    """
    found: list[Row] = []
    for backend, series in timed.items():
        values = exact.get(backend, {})
        found += _exact_rows(case, backend, values)
        found += _time_rows(case, backend, series)
        if series.status is not Status.OK:
            continue
        flops = values.get("flops")
        found += _rates(case, backend, series, flops, values, environment)
        for metric, other in (("ratio_to_frozen", FROZEN), ("ratio_to_peft", "peft")):
            base = timed.get(other) if other != backend else None
            if base is not None and base.status is Status.OK:
                found.append(_row(case, backend, metric, ratio_of(series, base), stopped=series.stopped))
    return found


def ratio_of(series: Timed, base: Timed) -> Interval:
    """Within one run: each round over the median of the same round of the base, so that common drift cancels."""
    if len(series.rounds) == len(base.rounds):
        return interval(over(series.rounds, base.rounds))
    return ratio(series.rounds, base.rounds)


def _time_rows(case: Case, backend: str, series: Timed) -> list[Row]:
    if series.status is not Status.OK:
        return [_blank(case, backend, "time_ms", series.status, series.error)]
    found = interval(series.rounds)
    time = _row(case, backend, "time_ms", found, stopped=series.stopped)
    time |= {
        "samples": [s for part in series.rounds for s in part],
        "rounds": [len(part) for part in series.rounds],
        "warmup": series.warmup,
        "timer": series.timer,
        "l2_flush": series.timer == "cuda events",
        "cuda_graph": False,
    }
    return [time, _single(case, backend, "first_ms", series.first_ms)]


def _rates(case: Case, backend: str, series: Timed, flops: float | None, values: Row, environment: Row) -> list[Row]:
    found = []
    ms = interval(series.rounds)
    if case.mode in (*TRAINING, Mode.MIXED):
        found.append(_inverse(case, backend, "tokens_s", ms, case.tokens * 1e3))
    if flops:
        found.append(_inverse(case, backend, "tflops", ms, flops / 1e9))
        roof = _roof_ms(flops, values, environment)
        if roof is not None:
            found.append(_inverse(case, backend, "roofline_frac", ms, roof))
    return found


def _roof_ms(flops: float, values: Row, environment: Row) -> float | None:
    """The longer of computing and of moving every byte of the operations once, in milliseconds."""
    tflops, gbs, moved = environment.get("peak_tflops"), environment.get("peak_gbs"), values.get("moved_bytes")
    if not tflops:
        return None
    compute = flops / (tflops * 1e9)
    return max(compute, moved / (gbs * 1e6)) if gbs and moved else float(compute)


def _exact_rows(case: Case, backend: str, values: Row) -> list[Row]:
    return [_single(case, backend, metric, values[metric]) for metric in METRICS if metric in values]


def _inverse(case: Case, backend: str, metric: str, ms: Interval, numerator: float) -> Row:
    """A rate: the interval of the time, upside down."""
    value, low, high, p20, p80 = (numerator / t for t in (ms.median, ms.high, ms.low, ms.p80, ms.p20))
    turned = Interval(value, low, high, p20, p80, ms.n)
    return _row(case, backend, metric, turned)


def _row(case: Case, backend: str, metric: str, found: Interval, **more: Any) -> Row:
    at = {"value": found.median, "ci_low": found.low, "ci_high": found.high, "p20": found.p20, "p80": found.p80}
    return _blank(case, backend, metric, Status.OK) | at | {"n": found.n} | more


def _single(case: Case, backend: str, metric: str, value: float | None) -> Row:
    return _blank(case, backend, metric, Status.OK) | {"value": None if value is None else float(value), "n": 1}


def _blank(case: Case, backend: str, metric: str, status: Status, error: str = "") -> Row:
    about = METRICS[metric]
    known = {"metric": metric, "unit": about.unit, "better": about.better, "kind": about.kind}
    return {**case.as_row(), "backend": backend, **known, "status": status.value, "error": error}
