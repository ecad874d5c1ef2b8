"""The clock of each device, in seconds, which waits for the device before it is read."""

from __future__ import annotations

import time

import torch

_FLUSH_BYTES = 256 * 2**20  # more than the L2 cache of any GPU in ``bench.simulate.devices``


class Clock:
    """``perf_counter`` on a CPU; on a GPU the time of an event that the clock records and waits for."""

    def __init__(self, device: str) -> None:
        self.device, self.name = device, "perf_counter"
        if device == "cuda":
            self.name = "cuda events"
            self.scratch = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
            self.rebase()

    def rebase(self) -> None:
        """Events give float32 milliseconds since the base: it must be near for a microsecond to show."""
        if self.device == "cuda":
            self.base = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.base.record()
            torch.cuda.synchronize()

    def flush(self) -> None:
        """Empty the L2 cache, so that no sample finds its weights there; then wait."""
        if self.device == "cuda":
            self.scratch.zero_()
            self.rebase()

    def __call__(self) -> float:
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        return float(self.base.elapsed_time(event)) / 1e3
