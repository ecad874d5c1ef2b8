"""Simulated steps, their memory by category, and the map of where LoRA beats full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.report import Report
from reports.sheet import Cell, Head, Sheet, figure, quantity, word

CATEGORIES = ("parameters", "gradients", "optimiser", "activations", "temporary", "inputs")
_KEY = ["file", "model", "backend", "rank", "batch", "seq", "dtype", "adapter_dtype", "gpu"]


@dataclass(frozen=True)
class Setting:
    """One simulated setting: its steps and their memory."""

    id: str
    title: str
    steps: pd.DataFrame
    memory: pd.DataFrame


def settings(report: Report) -> list[Setting]:
    """In the order in which they were read."""
    made = []
    groups = report.simulated.groupby(_KEY, sort=False, dropna=False)
    for number, (key, steps) in enumerate(groups):
        at = dict(zip(_KEY, key, strict=True))
        dtype = at["dtype"] if at["dtype"] == at["adapter_dtype"] else f"{at['dtype']}, adapters {at['adapter_dtype']}"
        title = f"{at['model']}, r {at['rank']}, {at['batch']} x {at['seq']} tokens, {dtype}"
        memory = report.simulated_memory
        for name in _KEY:
            memory = memory[memory[name] == at[name]]
        made.append(Setting(f"simulated-{number}", f"{title}: {at['backend']} on {at['gpu']}", steps, memory))
    return made


def sheet(setting: Setting) -> Sheet:
    """A row for each step, with and without checkpointing, LoRA and full."""
    heads = (
        Head("step"),
        *(quantity(name, "held at the peak") for name in CATEGORIES),
        quantity("peak", "most memory at once: the sum of the categories"),
        Head("fits", "in all of the GPU's memory; the driver and fragmentation need some of it too"),
        quantity("FLOP", "of one step"),
        quantity("time, at least", "by the roofline: a bound, not a forecast"),
        quantity("throughput, at most", "tokens of the step over that time"),
        quantity("trainable", "parameters that the optimiser steps"),
        quantity("adapter file"),
    )
    rows = []
    for step in setting.steps.itertuples():
        held = setting.memory[
            (setting.memory["method"] == step.method) & (setting.memory["checkpointing"] == step.checkpointing)
        ].drop_duplicates("category")
        held = held.set_index("category")["bytes"]
        rows.append(
            [
                word(name_of(step.method, checkpointing=step.checkpointing)),
                *(figure(held.get(name), "B") for name in CATEGORIES),
                figure(step.peak, "B"),
                word(f"{'yes' if step.fits else 'no'}", "good" if step.fits else "bad", _share(step)),
                figure(step.flops, "FLOP"),
                figure(step.seconds, "s"),
                figure(step.tokens_s, "tokens/s"),
                figure(step.trainable_params, "1"),
                figure(step.file_bytes, "B"),
            ]
        )
    return Sheet(setting.id, setting.title, heads, rows)


def name_of(method: str, *, checkpointing: bool) -> str:
    """As tables and figures call a step."""
    return f"{method}, checkpointing" if checkpointing else method


@dataclass(frozen=True)
class Map:
    """The cells of one crossover file at one rank."""

    id: str
    title: str
    cells: pd.DataFrame


def maps(report: Report) -> list[Map]:
    """By file and rank."""
    groups = report.crossover.groupby(["file", "backend", "gpu", "dtype", "rank"], sort=False, dropna=False)
    return [
        Map(f"crossover-{n}", f"r {rank}: {backend} in {dtype} on {gpu}", cells)
        for n, ((_, backend, gpu, dtype, rank), cells) in enumerate(groups)
    ]


def crossover(found: Map) -> Sheet:
    """A row for each layer and number of tokens."""
    heads = (
        Head("layer", "hidden x hidden"),
        quantity("tokens", "of one step"),
        quantity("time, LoRA / full", "by the roofline; below 1 LoRA is faster"),
        quantity("FLOP, LoRA / full", "below 1 LoRA has fewer"),
        quantity("memory, LoRA / full", "of the peak"),
        quantity("operations, LoRA / full", "launches, which the roofline leaves out"),
    )
    return Sheet(found.id, found.title, heads, [list(_cells(row)) for row in found.cells.itertuples()])


def _cells(row: Any) -> Iterator[Cell]:
    yield word(f"{row.hidden} x {row.hidden}")
    yield figure(row.tokens, "1")
    for name in ("time_ratio", "flops_ratio", "peak_ratio", "ops_ratio"):
        yield figure(getattr(row, name), "1")


def _share(step: Any) -> str:
    return f"{100 * step.peak / step.gpu_memory:.0f} % of it"
