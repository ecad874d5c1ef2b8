"""The record: one row per case, backend and metric. This is the schema of the Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 1
FROZEN = "frozen"  # the bare layer without an adapter: the floor that always runs along


class Status(StrEnum):
    """Only ``ok`` has a value."""

    OK = "ok"
    OOM = "oom"  # memory ran out
    UNSUPPORTED = "unsupported"  # the backend does not offer what the case needs
    WRONG = "wrong"  # not conforming, so not timed
    TIMEOUT = "timeout"
    CRASH = "crash"  # the process died, or the backend raised


Kind = Literal["deterministic", "measured"]


@dataclass(frozen=True)
class Metric:
    """``better`` is the direction of an improvement; deterministic figures have no noise and must not change at all."""

    unit: str
    better: Literal["lower", "higher", "none"]
    kind: Kind
    meaning: str


METRICS: dict[str, Metric] = {
    "time_ms": Metric("ms", "lower", "measured", "median wall time of one call"),
    "first_ms": Metric("ms", "lower", "measured", "the first call, with compilation and tuning"),
    "tokens_s": Metric("tokens/s", "higher", "measured", "tokens of the case over time_ms"),
    "tflops": Metric("TFLOP/s", "higher", "measured", "flops of the case over time_ms"),
    "roofline_frac": Metric("1", "higher", "measured", "time that the device's roofline allows over time_ms"),
    "ratio_to_frozen": Metric("1", "lower", "measured", "time_ms over that of the bare frozen layer, same run"),
    "ratio_to_peft": Metric("1", "lower", "measured", "time_ms over that of peft, same run"),
    "peak_alloc_delta": Metric("B", "lower", "measured", "most bytes in tensors during the call, above those before"),
    "peak_reserved": Metric("B", "lower", "measured", "most bytes reserved by the allocator of a GPU"),
    "peak_resident": Metric(
        "B", "none", "measured", "most bytes that a process on a CPU held, with what it kept before"
    ),
    "recompiles": Metric("1", "lower", "measured", "graphs compiled for a second and third shape"),
    "saved_bytes": Metric("B", "lower", "deterministic", "kept from forward to backward, without parameters"),
    "sim_peak_bytes": Metric("B", "lower", "deterministic", "simulated peak of the whole step, parameters included"),
    "flops": Metric("FLOP", "lower", "deterministic", "floating-point operations of the mode"),
    "n_ops": Metric("1", "lower", "deterministic", "operations dispatched by the mode"),
    "trainable_params": Metric("1", "none", "deterministic", "parameters that an optimiser would step"),
    "file_bytes": Metric("B", "lower", "deterministic", "size of the saved adapter, all files"),
}

RUN = {
    "schema_version": pa.int32(),
    "run_id": pa.string(),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "commit": pa.string(),
    "dirty": pa.bool_(),
    "profile": pa.string(),
}
CASE = {
    "case_id": pa.string(),
    "model": pa.string(),
    "module": pa.string(),
    "in_features": pa.int32(),
    "out_features": pa.int32(),
    "rank": pa.int32(),
    "alpha": pa.float64(),
    "dropout": pa.float64(),
    "base_dtype": pa.string(),
    "adapter_dtype": pa.string(),
    "batch": pa.int32(),
    "seq": pa.int32(),
    "tokens": pa.int32(),
    "n_adapters": pa.int32(),
    "adapter_mix": pa.string(),
    "grad_ckpt": pa.bool_(),
    "compile": pa.bool_(),
    "mode": pa.string(),
}
BACKEND = {
    "backend": pa.string(),
    "backend_version": pa.string(),
    "verdict": pa.string(),  # "conforming", "wrong", "not judged" for the frozen floor
    "verdict_digest": pa.string(),  # of the conformance results that say so
}
RESULT = {
    "metric": pa.string(),
    "unit": pa.string(),
    "better": pa.string(),
    "kind": pa.string(),
    "status": pa.string(),
    "value": pa.float64(),  # null unless status is ok
    "p20": pa.float64(),
    "p80": pa.float64(),
    "ci_low": pa.float64(),  # 95 % bootstrap interval of the median
    "ci_high": pa.float64(),
    "n": pa.int32(),
    "warmup": pa.int32(),
    "stopped": pa.string(),  # why sampling ended: "samples", "time" or "spread"
    "samples": pa.list_(pa.float64()),  # raw, in the unit, in the order taken
    "rounds": pa.list_(pa.int32()),  # how many of them each interleaved round took, in order
    "error": pa.string(),
    "timer": pa.string(),
    "l2_flush": pa.bool_(),
    "cuda_graph": pa.bool_(),
    "clocks_locked": pa.string(),  # "locked", "unlocked", "" where there are none
}
ENVIRONMENT = {
    "device": pa.string(),  # "cpu" or "cuda"
    "device_name": pa.string(),
    "driver": pa.string(),
    "cuda": pa.string(),
    "torch": pa.string(),
    "triton": pa.string(),
    "python": pa.string(),
    "threads": pa.int32(),
    "host": pa.string(),  # a digest: tells machines apart, names none
    "load": pa.float64(),  # other processes that ran when the run began, on Ray when the group did
    "clock_mhz": pa.float64(),
    "power_w": pa.float64(),
    "temperature_c": pa.float64(),
    "throttled": pa.bool_(),
    "peak_tflops": pa.float64(),  # the roof used for roofline_frac
    "peak_gbs": pa.float64(),
}
SCHEMA = pa.schema(
    [*({**RUN, **CASE, **BACKEND, **RESULT, **ENVIRONMENT}).items()],
    metadata={"lora_bench_schema": str(SCHEMA_VERSION)},
)
KEY = ("case_id", "backend", "metric", "device_name", "threads")  # rows with equal keys are one series
