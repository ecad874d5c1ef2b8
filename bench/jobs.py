"""What one benchmark is asked to time, and the benchmarks of a list of cases as pytest parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from bench.cases import Case
from bench.timer import Clock
from bench.timing import Series


@dataclass
class Job:
    """``series`` is what the benchmark leaves."""

    case: Case
    backend: str
    device: str
    clock: Clock
    samples: int = 30
    seconds: float = 3.0
    series: Series | None = None


def parametrise(metafunc: pytest.Metafunc, cases: Sequence[Case], backends: Sequence[str], device: str) -> None:
    """One benchmark for each case and backend; pytest-benchmark groups them by case and reads the device's clock."""
    clock = Clock(device) if cases else None
    jobs = []
    for case in cases:
        mark = pytest.mark.benchmark(timer=clock, group=case.case_id, disable_gc=True)
        for backend in backends:
            assert clock is not None
            jobs.append(pytest.param(Job(case, backend, device, clock), marks=mark, id=f"{case.case_id}-{backend}"))
    metafunc.parametrize("job", jobs)
