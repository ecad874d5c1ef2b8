"""Runs made up from a stated model of noise, for the tests of comparison and history.

A sample is  base x exp(machine + round + own + skew) x spike  with

- machine ~ N(0, ``machine``): one draw per run, common to all its series (clock, neighbours, temperature);
- round ~ N(0, ``round``): one draw per interleaved round, common to all backends of a case;
- own ~ N(0, ``own``): one draw per series and round (the layout of memory in a process, and what else does not cancel);
- skew = |N(0, ``sample``)|: half-normal, since a time has a floor and a tail;
- spike: 1 + Exp(0.3) with probability 0.03, else 1.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from bench.cases import Case, Mode
from bench.record import METRICS, SCHEMA_VERSION
from bench.store import table


@dataclass(frozen=True)
class Noise:
    machine: float
    round: float
    own: float
    sample: float


QUIET = Noise(machine=0.003, round=0.003, own=0.002, sample=0.008)  # an idle machine with locked clocks
USUAL = Noise(machine=0.010, round=0.007, own=0.005, sample=0.025)  # a desktop
SHARED = Noise(machine=0.020, round=0.010, own=0.007, sample=0.033)  # two cores with neighbours
ROUNDS, SAMPLES = 3, 10
START = datetime(2026, 1, 1, tzinfo=UTC)


def case(n: int = 0) -> Case:
    return Case("tiny", "q", 64 + n, 64, rank=8, batch=2, seq=16, mode=Mode.STEP)


def row(n: int, backend: str, metric: str, value: float | None, /, **more: Any) -> dict[str, Any]:
    """One row of case n, with an environment that does not change."""
    known = METRICS[metric]
    environment = {"device": "cpu", "device_name": "a cpu", "threads": 2, "torch": "2.13.0", "python": "3.12.1"}
    about = {"schema_version": SCHEMA_VERSION, "run_id": "run0", "timestamp": START, "commit": "c" * 40, "dirty": False}
    result = {"unit": known.unit, "better": known.better, "kind": known.kind, "status": "ok", "value": value}
    return about | environment | case(n).as_row() | {"backend": backend, "metric": metric} | result | more


def times(
    generator: np.random.Generator, noise: Noise, cases: int, shift: float = 0.0, **more: Any
) -> list[dict[str, Any]]:
    """time_ms of the floor and of two backends on each case; backend ``a`` takes ``1 + shift`` times as long."""
    machine, rows = generator.normal(0, noise.machine), []
    for n in range(cases):
        rounds = generator.normal(0, noise.round, (ROUNDS, 1))
        for backend, base in (("frozen", 1.0), ("a", 1.2 * (1 + shift)), ("b", 1.1)):
            own = generator.normal(0, noise.own, (ROUNDS, 1))
            skew = np.abs(generator.normal(0, noise.sample, (ROUNDS, SAMPLES)))
            spike = np.where(generator.random(skew.shape) < 0.03, 1 + generator.exponential(0.3, skew.shape), 1)
            samples = (base * np.exp(machine + rounds + own + skew) * spike).ravel()
            counts = {"samples": samples.tolist(), "rounds": [SAMPLES] * ROUNDS, "n": samples.size}
            rows.append(row(n, backend, "time_ms", float(np.median(samples)), **counts, **more))
    return rows


def run(
    generator: np.random.Generator, noise: Noise = USUAL, cases: int = 1, shift: float = 0.0, number: int = 0
) -> pa.Table:
    """Times and two figures of memory, as run ``number`` of a nightly history."""
    labels = {
        "run_id": f"run{number}",
        "timestamp": START + timedelta(days=number),
        "commit": f"{number + 0xC0FFEE:08x}" + "0" * 32,
    }
    rows = times(generator, noise, cases, shift, **labels)
    for n in range(cases):
        rows.append(row(n, "a", "saved_bytes", 1_000_000.0, **labels))
        rows.append(row(n, "a", "peak_alloc_delta", 4_000_000.0, samples=[4_000_000.0], **labels))
    return table(rows)
