"""Bytes that the allocator of a GPU reserves for a case do not depend on the cases before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.cases import Case, Mode
from bench.memory import _on_gpu, measure
from bench.operations import Operation
from bench.record import FROZEN

MIB = 2**20
SMALL = Case("tiny", "q", 1024, 1024, 8, 1, 512, Mode.STEP)


class Allocator:
    """Blocks that are in use, what is kept of those that were freed, and the most that both came to."""

    def __init__(self, cached: int) -> None:
        self.used, self.cached, self.peak, self.peak_used = 0, cached, cached, 0

    def take(self, size: int) -> None:
        self.cached = max(0, self.cached - size)
        self.used += size
        self.peak, self.peak_used = max(self.peak, self.used + self.cached), max(self.peak_used, self.used)

    def free(self, size: int) -> None:
        self.used, self.cached = self.used - size, self.cached + size

    def empty_cache(self) -> None:
        self.cached = 0

    def reset_peak_memory_stats(self) -> None:
        self.peak, self.peak_used = self.used + self.cached, self.used


@pytest.mark.parametrize("before", [0, 1000 * MIB], ids=["first", "after a large case"])
def test_what_earlier_cases_left_is_not_counted(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(before)
    for name, call in {
        "synchronize": lambda: None,
        "empty_cache": allocator.empty_cache,
        "reset_peak_memory_stats": allocator.reset_peak_memory_stats,
        "memory_allocated": lambda: allocator.used,
        "max_memory_allocated": lambda: allocator.peak_used,
        "max_memory_reserved": lambda: allocator.peak,
    }.items():
        monkeypatch.setattr(torch.cuda, name, call)

    def run(_: Any) -> None:
        allocator.take(8 * MIB)
        allocator.free(8 * MIB)

    allocator.take(16 * MIB)  # the case's parameters
    run(None)  # as it warms up
    found = _on_gpu(Operation(lambda: allocator.take(2 * MIB), run))
    assert found == {"peak_alloc_delta": 8 * MIB, "peak_reserved": 26 * MIB}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_small_case_after_a_large_one() -> None:
    measure(SMALL, FROZEN, "cuda")  # libraries take their workspaces in the first case of a process
    before = measure(SMALL, FROZEN, "cuda")["peak_reserved"]
    measure(replace(SMALL, in_features=8192, out_features=8192), FROZEN, "cuda")
    assert measure(SMALL, FROZEN, "cuda")["peak_reserved"] == before
