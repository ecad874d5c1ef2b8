"""Recorded inputs of every kind, small and made up, as the commands write them."""

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import samples

from bench.cases import Case, Mode
from bench.record import METRICS, SCHEMA_VERSION
from bench.store import table, write

START = datetime(2026, 1, 1, tzinfo=UTC)
ABOUT = {
    "schema_version": SCHEMA_VERSION,
    "run_id": "run0",
    "timestamp": START,
    "commit": "c" * 40,
    "dirty": False,
    "profile": "cpu-quick",
    "device": "cpu",
    "device_name": "a processor",
    "threads": 2,
    "torch": "2.13.0",
    "python": "3.12.1",
    "host": "0123456789ab",
    "load": 0.1,
}


def case(mode: Mode = Mode.STEP, n: int = 0) -> Case:
    return Case("tiny", "q", 64 + n, 64, rank=8, batch=2, seq=16, mode=mode)


def figure(backend: str, metric: str, value: float | None, at: Case | None = None, /, **more: Any) -> dict[str, Any]:
    """One benchmark row; measured figures have an interval of 5 % to each side."""
    known = METRICS[metric]
    result = {"unit": known.unit, "better": known.better, "kind": known.kind, "status": "ok", "value": value, "n": 1}
    if value is not None and known.kind == "measured":
        result |= {"ci_low": 0.95 * value, "ci_high": 1.05 * value, "p20": 0.97 * value, "p80": 1.03 * value, "n": 30}
    word = "not judged" if backend == "frozen" else "conforming"
    names = {"backend": backend, "metric": metric, "backend_version": "" if backend == "frozen" else "1.0"}
    return ABOUT | (at or case()).as_row() | names | {"verdict": word} | result | more


def backend_rows(backend: str, ms: float, at: Case, **more: Any) -> list[dict[str, Any]]:
    """All figures of one backend on one case, the bare layer taking 1 ms."""
    rows = [
        figure(backend, "time_ms", ms, at, **more),
        figure(backend, "tokens_s", at.tokens * 1e3 / ms, at, **more),
        figure(backend, "peak_alloc_delta", 1_000_000 * ms, at, **more),
        figure(backend, "saved_bytes", 123_456.0, at, **more),
    ]
    if backend != "frozen":
        rows.append(figure(backend, "ratio_to_frozen", ms, at, **more))
    if backend not in {"frozen", "peft"}:
        rows.append(figure(backend, "ratio_to_peft", ms / 1.2, at, **more))
    return rows


def benchmarks(path: Path, number: int = 0, **more: Any) -> Path:
    """Three modes of one case on the bare layer, peft and ``mine``; ``wrong`` was not timed."""
    about = {"run_id": f"run{number}", "timestamp": START + timedelta(days=number), **more}
    rows = []
    for mode in (Mode.FORWARD, Mode.BACKWARD, Mode.STEP):
        at = case(mode)
        for backend, ms in (("frozen", 1.0), ("peft", 1.2), ("mine", 1.1)):
            rows += backend_rows(backend, ms, at, **about)
        bad = {"status": "wrong", "error": "red in forward", "verdict": "wrong", "n": None}
        rows.append(figure("wrong", "time_ms", None, at, **about | bad))
    write(table(rows), path)
    return path


def kills(folder: Path) -> list[Path]:
    """Two mutants before two invariants; one survives."""
    folder.mkdir(exist_ok=True)
    with (folder / "kill-matrix.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["mutant", "forward", "gradients"], ["doubled", 1, 0], ["sleepy", 0, ""]])
    head = ["mutant", "killed by", "also found by", "defect", "thread"]
    rows = [["doubled", "forward", "", "The delta, twice.", "a#1"], ["sleepy", "SURVIVES forward", "", "Lazy.", ""]]
    with (folder / "kills.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return [folder / "kill-matrix.csv", folder / "kills.csv"]


def simulate(path: Path, backend: str = "peft") -> Path:
    setting = {"model": "llama-2-7b", "backend": backend, "r": 16, "batch": 4, "seq": 512, "alpha": 32.0}
    setting |= {"dtype": "bfloat16", "adapter_dtype": "bfloat16", "targets": []}
    steps = []
    for method, checkpointing, held in (("LoRA", False, 11), ("LoRA", True, 1), ("full", False, 70)):
        memory = {"parameters": 12 * 2**30, "activations": held * 2**30}
        step = {"method": method, "checkpointing": checkpointing, "memory": memory, "peak": sum(memory.values())}
        step |= {"flops": 56e12, "n_ops": 12000, "seconds": 0.12, "memory_bound": 0.5, "tokens": 2048}
        step |= {
            "total_params": 7 * 10**9,
            "trainable_params": 4 * 10**7,
            "file_bytes": 80_000_000,
            "tokens_s": 17000.0,
        }
        steps.append(step | {"fits": step["peak"] <= 80 * 2**30})
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 * 2**30, "source": "a datasheet"}
    told = {"kind": "simulate", "schema": 1, "setting": setting, "gpu": gpu, "conditions": [], "steps": steps}
    path.write_text(json.dumps(told))
    return path


def crossover(path: Path) -> Path:
    cells = [
        {"hidden": hidden, "tokens": tokens, "rank": 8, "lora_flops": 70, "full_flops": 100, "lora_seconds": 1e-3}
        | {"full_seconds": 1e-3 / ratio, "peak_ratio": 0.4, "ops_ratio": 2.0, "flops_ratio": 0.7, "time_ratio": ratio}
        for hidden, tokens, ratio in ((1024, 64, 0.5), (1024, 512, 1.25), (2048, 64, 0.25), (2048, 512, 1.0))
    ]
    told = {"kind": "crossover", "schema": 1, "backend": "peft", "gpu": {"name": "a GPU"}, "dtype": "bfloat16"}
    path.write_text(json.dumps(told | {"cells": cells}))
    return path


def history(path: Path, runs: int = 12) -> Path:
    about = [
        {"run_id": f"run{n}", "timestamp": f"2026-01-{n + 1:02}T00:00:00+00:00", "commit": f"{n:040x}", "dirty": False}
        for n in range(runs)
    ]
    values: list[float | None] = [1.0 if n < runs // 2 else 1.5 for n in range(runs)]
    values[1] = None
    one = {"case_id": case().case_id, "backend": "peft", "metric": "time_ms", "device_name": "a processor"}
    one |= {"threads": 2, "unit": "ms", "course": "worse", "note": "(+50.0%)", "values": values}
    one |= {"segments": [[0, 1.0], [runs // 2, 1.5]]}
    told = {"kind": "history", "schema": 1, "gate": 0.04, "runs": about, "series": [one]}
    path.write_text(json.dumps(told))
    return path


def conformance(path: Path, **header: Any) -> Path:
    """peft has a gap, ``mine`` conforms, ``wrong`` does not."""
    told = "forward: y is right.\n  expected   512\n  got        232"
    bad = {
        "failure": told,
        "cause": "the delta is doubled",
        "reproduce": "lora-conformance reproduce forward --case '{}'",
    }
    records = [
        samples.record("peft", "forward", "PASS", fraction=0.5, examples=50),
        samples.record("peft", "gradients", "GAP", reason="no rank 3", upstream="https://example.org/1"),
        samples.record("mine", "forward", "PASS"),
        samples.record("mine", "gradients", "UNSUPPORTED", reason="not claimed"),
        samples.record("wrong", "forward", "FAIL", **bad),
        samples.record("wrong", "forward", "PASS", dtype="bfloat16"),
        samples.record("wrong", "gradients", "FAIL", failure="gradients: wrong", cause=""),
    ]
    return samples.write(path, records, header=header)


def everything(folder: Path) -> Path:
    """A folder with one input of each kind, two benchmark runs among them."""
    folder.mkdir(exist_ok=True)
    conformance(folder / "results.jsonl")
    benchmarks(folder / "a.parquet")
    benchmarks(folder / "b.parquet", 1)
    kills(folder / "mutants")
    simulate(folder / "simulate.json")
    crossover(folder / "crossover.json")
    history(folder / "history.json")
    return folder
