"""What one call holds, in tensors and in the resident set, and what is exact without a clock."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.cases import TRAINING, Case
from bench.exactness import check
from bench.nets import build
from bench.operations import Operation, make
from bench.record import FROZEN
from bench.simulate.tracker import Category, Tracker
from bench.subject import Subject, adapted
from conformance.contract import Feature


def measure(case: Case, reference: str, device: str = "cpu") -> dict[str, Any]:
    """Values by metric, of those that the case has. The layer of a single-layer case is first judged at its shape.

    Raises:
        WrongError, UnsupportedError: see ``bench.exactness`` and ``bench.subject``.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()  # else tensors of this case would lie in large blocks that earlier ones left
    if case.single and case.mode in TRAINING and reference != FROZEN:
        check(case, adapted(case, reference, device), device)
    operation = make(case, reference, device)
    operation.run(operation.setup())
    gc.collect()
    values: dict[str, Any] = dict(_on_gpu(operation) if device == "cuda" else _on_cpu(operation))
    if operation.subject is not None:
        values["trainable_params"] = sum(p.numel() for p in operation.subject.trainable)
        values |= _file_bytes(operation.subject) if case.whole else {}
    if case.compile:
        values["recompiles"] = _recompiles(case, operation)
    if case.mode in TRAINING and not case.compile:
        from bench.simulate.counts import count

        counted = count(case, reference)
        names = ("flops", "moved_bytes", "n_ops", "saved_bytes", "sim_peak_bytes")
        values |= {name: getattr(counted, name) for name in names}
    return values


def _on_cpu(operation: Operation) -> Mapping[str, int]:
    """Tracked tensor bytes, each storage rounded up to 512; the resident set's high-water mark where Linux tells it."""
    with Tracker() as tracker:
        if operation.subject is not None:
            state = operation.subject.module.state_dict(keep_vars=True).values()
            tracker.hold(Category.PARAMETERS, [t for t in state if isinstance(t, torch.Tensor)])
        operation.run(operation.setup())  # shows the tracker what was there before
        given = operation.setup()
        gc.collect()
        tracker.peak = before = tracker.current
        operation.run(given)
    resident = _resident_peak(operation)
    return {"peak_alloc_delta": tracker.peak - before} | ({} if resident is None else {"peak_resident": resident})


def _resident_peak(operation: Operation) -> int | None:
    """VmHWM of one call, after Linux was told to forget the earlier mark (proc(5), clear_refs)."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None
    given = operation.setup()
    try:
        forget.write_text("5")
    except OSError:
        return None
    operation.run(given)
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _on_gpu(operation: Operation) -> Mapping[str, int]:
    """The caching allocator's own figures, of one call that finds nothing reserved but what is in use."""
    given = operation.setup()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    operation.run(given)
    torch.cuda.synchronize()
    return {
        "peak_alloc_delta": torch.cuda.max_memory_allocated() - before,
        "peak_reserved": torch.cuda.max_memory_reserved(),
    }


def _file_bytes(subject: Subject) -> dict[str, int]:
    backend = subject.backend
    if backend is None or backend.store is None or Feature.PEFT_LAYOUT not in backend.manifest.features:
        return {}
    assert subject.handle is not None
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        backend.store.dump(subject.handle, Path(folder))
        tensors = Path(folder).rglob("*.safetensors")  # a model card's length says nothing
        return {"file_bytes": sum(path.stat().st_size for path in tensors)}


def _recompiles(case: Case, operation: Operation) -> int:
    """Graphs that a second and a third sequence length cost."""
    from torch._dynamo.utils import counters

    assert operation.subject is not None
    before = counters["stats"]["unique_graphs"]
    for seq in (case.seq // 2, case.seq // 4):
        operation.subject.call(build(replace(case, seq=seq)).inputs(0))
    return int(counters["stats"]["unique_graphs"] - before)
