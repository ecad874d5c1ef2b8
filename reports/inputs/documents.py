"""What ``lora-bench`` writes as JSON: simulated steps, the crossover map, and a history with its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from reports.inputs.problem import InputError, json_of

SCHEMA = 1
KINDS = ("simulate", "crossover", "history")
Rows = list[dict[str, Any]]


def read(path: Path) -> dict[str, Rows]:
    """Rows by table.

    Raises:
        InputError: it is none of them, of a later schema, or malformed.
    """
    found = json_of(path)
    kind = found.get("kind") if isinstance(found, dict) else None
    if kind not in KINDS:
        raise InputError(path, "is no results file: a JSON file of lora-bench simulate, crossover or history is wanted")
    if found.get("schema") != SCHEMA:
        told = str(found.get("schema"))[:20]
        raise InputError(path, f"has schema {told}, this version reads {SCHEMA}: update lora-conformance")
    try:
        return {"simulate": _simulate, "crossover": _crossover, "history": _history}[kind](str(path), found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(path, f"is malformed: {type(error).__name__}: {error}") from None


def _simulate(file: str, found: Mapping[str, Any]) -> dict[str, Rows]:
    setting, gpu = found["setting"], found["gpu"]
    about: dict[str, Any] = {name: _text(setting[name]) for name in ("model", "backend", "dtype", "adapter_dtype")}
    about |= {name: _number(setting[of]) for name, of in (("rank", "r"), ("batch", "batch"), ("seq", "seq"))}
    about |= {"file": file, "gpu": _text(gpu["name"])}
    room = _number(gpu["memory"])
    if room <= 0:
        raise ValueError("a GPU without memory")
    steps, memory = [], []
    for step in found["steps"]:
        this = about | {"method": _text(step["method"]), "checkpointing": _flag(step["checkpointing"])}
        same = ("peak", "flops", "n_ops", "seconds", "memory_bound", "total_params", "trainable_params", "tokens_s")
        figures = {name: _number(step[name]) for name in same} | {"file_bytes": _maybe(step["file_bytes"])}
        steps.append(this | figures | {"gpu_memory": room, "fits": _flag(step["fits"])})
        memory += [this | {"category": str(name), "bytes": _number(n)} for name, n in step["memory"].items()]
    return {"simulated": steps, "simulated_memory": memory}


def _crossover(file: str, found: Mapping[str, Any]) -> dict[str, Rows]:
    about = {"backend": found["backend"], "gpu": found["gpu"]["name"], "dtype": found["dtype"]}
    about = {"file": file} | {name: _text(value) for name, value in about.items()}
    return {"crossover": [about | {name: _number(value) for name, value in cell.items()} for cell in found["cells"]]}


def _history(file: str, found: Mapping[str, Any]) -> dict[str, Rows]:
    runs, courses, points = found["runs"], [], []
    dates = [datetime.fromisoformat(run["timestamp"]) for run in runs]
    for series in found["series"]:
        key: dict[str, Any] = {name: _text(series[name]) for name in ("case_id", "backend", "metric", "device_name")}
        key["threads"] = int(series["threads"])
        segments = [(int(start), _maybe(level)) for start, level in series["segments"]]
        words = {name: _text(series[name]) for name in ("unit", "course", "note")}
        about = {"file": file, **key, **words}
        courses.append(about | {"steps": max(len(segments) - 1, 0)})
        values = series["values"]
        if len(values) != len(runs):
            raise ValueError(f"{len(values)} values in {len(runs)} runs")
        bounds = [*segments, (len(runs), None)]
        level = {n: height for (start, height), (end, _) in pairwise(bounds) for n in range(start, end)}
        begins = {start for start, _ in segments[1:]}
        for n, (run, value) in enumerate(zip(runs, values, strict=True)):
            when = {"run_id": run["run_id"], "timestamp": dates[n], "commit": run["commit"]}
            figures = {"value": _maybe(value), "level": level.get(n), "step": n in begins}
            points.append({"file": file, **key, **when, **figures})
    return {"courses": courses, "history": points}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{str(value)[:20]!r} is no text")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError(f"{str(value)[:20]!r} is neither true nor false")


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise TypeError(f"{str(value)[:20]!r} is no number")


def _maybe(value: Any) -> float | None:
    return None if value is None else _number(value)
