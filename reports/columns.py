"""The tables of a report: every column with its type, its unit and what it says. Missing is missing, never 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import pandas as pd

Type = Literal["text", "label", "integer", "number", "flag", "time"]
DTYPES: dict[Type, Any] = {
    "text": "string",
    "label": "category",  # text of which there are few different ones
    "integer": "Int64",
    "number": "float64",
    "flag": "boolean",
    "time": "datetime64[ms, UTC]",
}


class Column(NamedTuple):
    """unit: "1" for a pure number, "B" bytes, "" for what is no quantity."""

    type: Type
    unit: str
    meaning: str


_SUITE = {
    "suite": Column("text", "", "version of lora-conformance that judged"),
    "digest": Column("text", "", "of its invariants: verdicts under different digests are not comparable"),
}
_BACKEND = {
    "backend": Column("text", "", "name of the implementation"),
    "version": Column("text", "", "of the implementation"),
}
_SERIES = {
    "case_id": Column("label", "", "the benchmark case in full, mode included"),
    "backend": Column("label", "", "as it was asked for; frozen is the bare layer without an adapter"),
    "metric": Column("label", "", "what was measured; reports.metrics says what each one is"),
    "device_name": Column("label", "", "processor or GPU"),
    "threads": Column("integer", "1", "threads of the measuring process"),
}
_INTERVAL = {
    "value": Column("number", "unit", "median, in the unit of the column unit; missing unless status is ok"),
    "ci_low": Column("number", "unit", "lower end of the 95 % interval of the median"),
    "ci_high": Column("number", "unit", "upper end of it"),
    "p20": Column("number", "unit", "20 % of the samples are below"),
    "p80": Column("number", "unit", "80 % of the samples are below"),
}
_SIMULATED = {
    "file": Column("text", "", "where it was read"),
    "model": Column("text", "", "the whole language model"),
    "backend": Column("text", "", "whose adapters"),
    "rank": Column("integer", "1", "r of the adapters"),
    "batch": Column("integer", "1", "sequences of one step"),
    "seq": Column("integer", "1", "tokens of a sequence"),
    "dtype": Column("text", "", "of the model"),
    "adapter_dtype": Column("text", "", "of A and B"),
    "method": Column("text", "", "LoRA, or full fine-tuning"),
    "checkpointing": Column("flag", "", "whether activations are recomputed"),
    "gpu": Column("text", "", "whose memory and speed"),
}

TABLES: dict[str, dict[str, Column]] = {
    "conformance": {  # one row per run, backend, invariant, facet, dtype and model
        **_SUITE,
        "run": Column("text", "", "the file it was read from"),
        "profile": Column("text", "", "quick or full: how many cases were drawn"),
        **_BACKEND,
        "invariant": Column("text", "", "id of the statement"),
        "family": Column("text", "", "of the statement"),
        "facet": Column("text", "", "through which part of the contract it was judged"),
        "dtype": Column("text", "", "in which it was judged"),
        "on": Column("text", "", "the model, where the facet needs one"),
        "verdict": Column("text", "", "PASS, FAIL, ERROR, CRASH, TIMEOUT, GAP, GAP-CLOSED or UNSUPPORTED"),
        "red": Column("flag", "", "FAIL, ERROR, CRASH, TIMEOUT or GAP-CLOSED"),
        "shown": Column("flag", "", "in the report: of the same trial in several runs the fullest, then the newest"),
        "examples": Column("integer", "1", "cases judged"),
        "seconds": Column("number", "s", "wall time of the trial"),
        "fraction": Column("number", "1", "largest error as a share of its bound; missing without one"),
        "reason": Column("text", "", "why it is unsupported or a gap"),
        "upstream": Column("text", "", "links to reports of the defect"),
        "cause": Column("text", "", "the named cause, where a known one explains every element"),
        "failure": Column("text", "", "the counterexample as it is printed"),
        "case": Column("text", "", "the counterexample's fields, as JSON"),
        "reproduce": Column("text", "", "the command that judges exactly this case"),
        "traceback": Column("text", "", "where the backend raised"),
        "after": Column("text", "", "red invariants that this one rests on, separated by spaces"),
    },
    "invariants": {  # one row per suite and invariant
        **_SUITE,
        "invariant": Column("text", "", "id"),
        "family": Column("text", "", "family"),
        "statement": Column("text", "", "what must hold"),
        "after": Column("text", "", "invariants without which it cannot hold, separated by spaces"),
    },
    "backends": {  # one row per suite, backend and version; trials that are shown
        **_SUITE,
        **_BACKEND,
        "standing": Column(
            "text", "", "conforms, conforms but for gaps, does not conform, cannot be imported, passes nothing"
        ),
        "profiles": Column("text", "", "of the trials"),
        "trials": Column("integer", "trials", "facet x dtype x model, over all invariants"),
        "passed": Column("integer", "trials", "PASS"),
        "red": Column("integer", "trials", "FAIL, ERROR, CRASH, TIMEOUT or GAP-CLOSED"),
        "gaps": Column("integer", "trials", "GAP: known to be broken, and declared"),
        "unsupported": Column("integer", "trials", "UNSUPPORTED: not claimed, or left out by the quick profile"),
        "red_invariants": Column("integer", "1", "invariants with a red trial"),
        "worst_fraction": Column("number", "1", "largest error as a share of its bound, where all is well"),
        "unexercised": Column("text", "", "features that it declares and no trial made use of"),
    },
    "conformance_runs": {  # one row per results file
        "run": Column("text", "", "the file it was read from"),
        **_SUITE,
        "started": Column("time", "", "when it began, UTC"),
        "seconds": Column("number", "s", "how long it took"),
        "profile": Column("text", "", "quick or full"),
        "seed": Column("integer", "", "of all that was drawn"),
        "models": Column("text", "", "on which models were judged"),
        "backends": Column("text", "", "with their versions"),
        "trials": Column("integer", "trials", "records of the file"),
        "device": Column("text", "", "processor, cores and system"),
        "versions": Column("text", "", "of Python and libraries"),
        "command": Column("text", "", "how it was called"),
    },
    "benchmarks": {  # one row per run, case, backend, metric and machine
        "run_id": Column("label", "", "the run, a row of benchmark_runs"),
        **_SERIES,
        "backend_version": Column("label", "", "of the implementation"),
        "model": Column("label", "", "where the shape comes from"),
        "module": Column("label", "", "the layer, a group of layers, or model for a whole one"),
        "in_features": Column("integer", "1", "of the layer, 0 for a whole model"),
        "out_features": Column("integer", "1", "of the layer, 0 for a whole model"),
        "rank": Column("integer", "1", "r"),
        "alpha": Column("number", "1", "the scaling is alpha / r"),
        "dropout": Column("number", "1", "probability"),
        "base_dtype": Column("label", "", "of W"),
        "adapter_dtype": Column("label", "", "of A and B"),
        "batch": Column("integer", "1", "sequences"),
        "seq": Column("integer", "tokens", "of a sequence"),
        "tokens": Column("integer", "tokens", "batch x seq"),
        "n_adapters": Column("integer", "1", "adapters there are"),
        "adapter_mix": Column("label", "", "how rows of a batch choose among them"),
        "grad_ckpt": Column("flag", "", "gradient checkpointing"),
        "compile": Column("flag", "", "torch.compile"),
        "mode": Column("label", "", "fwd, bwd, step, merge, load, switch or mixed"),
        "verdict": Column("label", "", "conforming, wrong, or not judged for the bare layer"),
        "unit": Column("label", "", "of value and its interval: ms, tokens/s, TFLOP/s, B, FLOP or 1"),
        "better": Column("label", "", "lower, higher or none"),
        "kind": Column("label", "", "deterministic or measured"),
        "status": Column("label", "", "ok, oom, unsupported, wrong, timeout or crash"),
        **_INTERVAL,
        "n": Column("integer", "1", "samples"),
        "error": Column("text", "", "why there is no value"),
        "shown": Column("flag", "", "in the report: the newest run of the series"),
    },
    "benchmark_runs": {  # one row per run and machine
        "run_id": Column("text", "", "the run"),
        "file": Column("text", "", "where it was read"),
        "timestamp": Column("time", "", "when it began, UTC"),
        "commit": Column("text", "", "of the checkout it was started in"),
        "dirty": Column("flag", "", "with uncommitted changes"),
        "profile": Column("text", "", "which cases"),
        "device": Column("text", "", "cpu or cuda"),
        "device_name": Column("text", "", "processor or GPU"),
        "driver": Column("text", "", "of the GPU"),
        "cuda": Column("text", "", "version"),
        "torch": Column("text", "", "version"),
        "triton": Column("text", "", "version"),
        "python": Column("text", "", "version"),
        "threads": Column("integer", "1", "threads of the measuring process"),
        "host": Column("text", "", "a digest that tells machines apart"),
        "load": Column("number", "processes", "of the machine when the run began"),
        "clocks_locked": Column("text", "", "locked, unlocked, or empty where there are none"),
        "throttled": Column("flag", "", "the clock was lowered for power or heat"),
        "peak_tflops": Column("number", "TFLOP/s", "the roof used for roofline_frac"),
        "peak_gbs": Column("number", "GB/s", "likewise"),
    },
    "mutants": {  # one row per broken backend
        "mutant": Column("text", "", "its id"),
        "killed_by": Column("text", "", "invariants named for it that found it, separated by spaces"),
        "survives": Column("text", "", "invariants named for it that did not"),
        "also_found_by": Column("text", "", "other invariants that found it"),
        "defect": Column("text", "", "the one thing that is wrong"),
        "thread": Column("text", "", "the real defect that it is modelled on"),
    },
    "kills": {  # one row per mutant and invariant that was tried on it
        "mutant": Column("text", "", "its id"),
        "invariant": Column("text", "", "tried on it"),
        "killed": Column("flag", "", "found the defect"),
        "named": Column("flag", "", "is named for it; missing where the list of mutants was not given"),
    },
    "simulated": {  # one row per simulated training step
        **_SIMULATED,
        "gpu_memory": Column("integer", "B", "of the GPU"),
        "peak": Column("integer", "B", "most memory at once"),
        "fits": Column("flag", "", "peak is no more than the GPU's memory"),
        "flops": Column("number", "FLOP", "of the step"),
        "n_ops": Column("integer", "1", "operations dispatched"),
        "seconds": Column("number", "s", "lower bound by the roofline"),
        "memory_bound": Column("number", "1", "share of that time in which bytes are the limit"),
        "tokens_s": Column("number", "tokens/s", "upper bound"),
        "total_params": Column("integer", "1", "parameters"),
        "trainable_params": Column("integer", "1", "parameters that the optimiser steps"),
        "file_bytes": Column("integer", "B", "of the adapter file; missing without an adapter"),
    },
    "simulated_memory": {  # one row per simulated step and category; the categories add up to the peak
        **_SIMULATED,
        "category": Column("text", "", "parameters, gradients, optimiser, activations, temporary or inputs"),
        "bytes": Column("integer", "B", "held at the peak"),
    },
    "crossover": {  # one row per layer shape, tokens and rank
        "file": Column("text", "", "where it was read"),
        "backend": Column("text", "", "whose adapters"),
        "gpu": Column("text", "", "whose speed"),
        "dtype": Column("text", "", "of the layer"),
        "hidden": Column("integer", "1", "the layer is hidden x hidden"),
        "tokens": Column("integer", "tokens", "of a step"),
        "rank": Column("integer", "1", "r"),
        "lora_flops": Column("number", "FLOP", "of a step with LoRA"),
        "full_flops": Column("number", "FLOP", "of a step of full fine-tuning"),
        "lora_seconds": Column("number", "s", "lower bound by the roofline"),
        "full_seconds": Column("number", "s", "likewise"),
        "flops_ratio": Column("number", "1", "LoRA over full fine-tuning; below 1 LoRA has fewer"),
        "time_ratio": Column("number", "1", "LoRA over full fine-tuning; below 1 LoRA is faster"),
        "peak_ratio": Column("number", "1", "of memory, likewise"),
        "ops_ratio": Column("number", "1", "of operations, likewise"),
    },
    "courses": {  # one row per series of a history
        "file": Column("text", "", "where it was read"),
        **_SERIES,
        "unit": Column("label", "", "of the values"),
        "course": Column("label", "", "broken, worse, apart, better, changed, steady or absent, as lora-bench history"),
        "note": Column("text", "", "what it says of it"),
        "steps": Column("integer", "1", "detected steps"),
    },
    "history": {  # one row per series and run
        "file": Column("text", "", "where it was read"),
        **_SERIES,
        "run_id": Column("label", "", "the run"),
        "timestamp": Column("time", "", "when it began, UTC"),
        "commit": Column("label", "", "of the checkout it was started in"),
        "value": Column("number", "unit", "at the typical speed of the bare layer; missing where the run has none"),
        "level": Column("number", "unit", "median of the segment that the run lies in"),
        "step": Column("flag", "", "a new level begins with this run"),
    },
    "problems": {  # one row per input that could not be read
        "file": Column("text", "", "which"),
        "problem": Column("text", "", "what is wrong with it"),
    },
}


def frame(table: str, rows: Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Rows as a table with exactly its documented columns, in their order; what a row lacks is missing."""
    columns = TABLES[table]
    listed = [[_whole(row.get(name)) for name in columns] for row in rows]
    return typed(table, pd.DataFrame.from_records(listed, columns=list(columns)))


def _whole(value: Any) -> Any:
    """Text as it is, but for halves of characters, which JSON can hold and no file can."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def typed(table: str, found: pd.DataFrame) -> pd.DataFrame:
    """Columns in their documented order and types."""
    columns = TABLES[table]
    return found[list(columns)].astype({name: DTYPES[column.type] for name, column in columns.items()})


def described() -> pd.DataFrame:
    """All tables' columns: table, column, type, unit, meaning."""
    rows = [(table, name, *column) for table, columns in TABLES.items() for name, column in columns.items()]
    return pd.DataFrame(rows, columns=["table", "column", "type", "unit", "meaning"])
