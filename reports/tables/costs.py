"""Benchmarks: a table for each case, one over all of them, and the Pareto view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from reports.cost import MODE_NAMES, TRAINING, Figure, Panel, frontier
from reports.inputs.benchmarks import FROZEN, OK
from reports.sheet import Cell, Head, Sheet, figure, quantity, word
from reports.tables.summary import mean

METRICS = {  # of a case's table: heading, and what it says
    "time_ms": ("time", "median wall time of one call, with its 95 % interval"),
    "tokens_s": ("throughput", "tokens of the case over that time"),
    "ratio_to_frozen": ("× frozen", "time over that of the bare frozen layer of the same run"),
    "ratio_to_peft": ("× peft", "time over that of peft of the same run"),
    "peak_alloc_delta": ("peak memory", "most bytes in tensors during the call, above those before it"),
    "saved_bytes": ("saved", "bytes kept from forward to backward, without parameters"),
    "peak_reserved": ("process", "most bytes that the allocator of a GPU reserved"),
    "peak_resident": ("process", "most bytes that a process on a CPU held, with what it kept before"),
}
ITSELF = {"ratio_to_frozen": FROZEN, "ratio_to_peft": "peft"}
_PARETO = "Pareto"


def overall(means: pd.DataFrame) -> Sheet:
    """Geometric means over the cases, by machine, backend and mode."""
    heads = (
        Head("machine"),
        Head("backend"),
        Head("mode"),
        quantity("× frozen", "geometric mean of the time over that of the frozen layer"),
        quantity("range", "lowest and highest case"),
        quantity("× peft", "likewise over peft"),
        quantity("memory × frozen", "geometric mean of the peak over that of the frozen layer"),
    )
    rows = []
    for row in means.itertuples():
        floor = mean(row, "ratio_to_frozen")
        span = word("–", "quiet")
        if floor.value is not None:
            low, high = (figure(getattr(row, f"ratio_to_frozen_{end}"), "1").text for end in ("low", "high"))
            span = word(f"{low} to {high}")
        peft = word("1 by definition", "quiet") if row.backend == "peft" else mean(row, "ratio_to_peft")
        names = [word(row.place), word(row.backend), word(MODE_NAMES.get(str(row.mode), row.mode))]
        rows.append([*names, floor, span, peft, mean(row, "memory")])
    return Sheet("overall", "Over all cases", heads, rows)


def case(panel: Panel, doubts: Mapping[str, str]) -> Sheet:
    """A row for each mode and backend."""
    heads = [Head("mode"), Head("backend"), *(quantity(*about) for about in METRICS.values())]
    pareto = points(panel, doubts)
    if len(pareto):
        heads.append(Head(_PARETO, "yes: no conforming backend needs less memory for as much throughput"))
    best = set(pareto.loc[pareto["best"], "backend"]) if len(pareto) else set()
    rows = []
    for mode in panel.modes:
        for (of, backend), metrics in panel.figures.items():
            if of == mode:
                name = word(backend, "bad" if backend in doubts else "", doubts.get(backend, ""))
                row = [word(MODE_NAMES.get(mode, mode)), name, *_figures(backend, metrics)]
                if len(pareto):
                    row.append(word("" if mode != "step" else "yes" if backend in best else "no"))
                rows.append(row)
    return Sheet(panel.id, panel.title, heads, rows)


def points(panel: Panel, doubts: Mapping[str, str]) -> pd.DataFrame:
    """Of the step: backend, memory (bytes), throughput (tokens/s) with its low and high, conforms, best (frontier)."""
    rows = []
    for (mode, backend), metrics in panel.figures.items():
        memory, throughput = (_value(metrics.get(name)) for name in ("peak_alloc_delta", "tokens_s"))
        if mode == "step" and memory is not None and throughput is not None:
            conforms = backend not in doubts
            rate = metrics["tokens_s"]
            rows.append((backend, memory, throughput, rate.ci_low, rate.ci_high, conforms))
    made = pd.DataFrame(rows, columns=["backend", "memory", "throughput", "low", "high", "conforms"])
    made["conforms"] = made["conforms"].astype(bool)
    made["best"] = frontier(made.assign(conforms=made["conforms"] & (made["backend"] != FROZEN)))
    return made


def problems(panel: Panel) -> list[tuple[str, str, str, str]]:
    """Mode, backend, status and error of what has no time."""
    found = []
    for (mode, backend), metrics in panel.figures.items():
        time = metrics.get("time_ms")
        if time is not None and time.status != OK:
            found.append((MODE_NAMES.get(mode, mode), backend, time.status, time.error))
    return found


def _figures(backend: str, metrics: Mapping[str, Figure]) -> Iterator[Cell]:
    time = metrics.get("time_ms")
    for name in METRICS:
        one = metrics.get(name)
        if ITSELF.get(name) == backend:
            yield word("1 by definition", "quiet")
        elif one is None:
            yield word("–" if time is None or time.status == OK else time.status, "quiet")
        else:
            yield figure(one.value, one.unit, one.status, one.ci_low, one.ci_high)


def _value(one: Figure | None) -> Any:
    return one.value if one is not None and one.status == OK and one.value == one.value else None


__all__ = ["ITSELF", "METRICS", "TRAINING", "case", "overall", "points", "problems"]
