"""The benchmarks: every case on every backend. ``lora-bench run`` asks for them one by one, each backend in a process.

By hand: ``pytest --pyargs bench --bench-backend peft --bench-profile cpu-quick``.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest

from bench.jobs import Job
from bench.operations import ready
from bench.subject import UnsupportedError
from bench.timing import sample

pytestmark = pytest.mark.filterwarnings("default")  # a library's warning is no reason to have no figure


def test_time(benchmark: Any, job: Job) -> None:
    gc.collect()
    try:
        operation = ready(job.case, job.backend, job.device)
        job.series = sample(benchmark, operation, job.clock, samples=job.samples, seconds=job.seconds)
    except UnsupportedError as error:
        pytest.skip(str(error))
    assert all(seconds > 0 for seconds in job.series.seconds)
