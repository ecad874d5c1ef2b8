"""``crossover``: the map of where LoRA beats full fine-tuning, and where it does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.simulate.crossover import Cell, cells
from bench.simulate.devices import Gpu, device
from conformance.discovery import UsageError, check_name

HIDDEN = (1024, 2048, 4096, 8192)
TOKENS = (64, 512, 2048, 8192, 32768)
RANKS = (8, 64, 256)


def execute(
    backend: str,
    *,
    gpu: str,
    hidden: Sequence[int] = HIDDEN,
    tokens: Sequence[int] = TOKENS,
    rank: Sequence[int] = RANKS,
    dtype: str = "bfloat16",
    out: Path | None = None,
) -> int:
    """A table for each rank: LoRA over full fine-tuning, in FLOPs and in roofline time; exit status 0.

    backend: as in ``run``; it needs the Model facet. gpu: a name of ``bench.simulate.devices.GPUS``.
    hidden, tokens, rank: the axes. dtype: "float32", "bfloat16" or "float16". out: a file for all cells as JSON.

    Options: --backend/-b, --gpu, --hidden, --tokens and --rank (each repeatable), --dtype, --out/-o.

    Raises:
        UsageError: a name that is unknown, with the nearest one; a number below 1; a file that cannot be written.
    """
    check_name(backend)
    chosen = device(gpu)
    if min(*hidden, *tokens, *rank) < 1:
        raise UsageError("--hidden, --tokens and --rank must be at least 1")
    if dtype not in {"float32", "bfloat16", "float16"}:
        raise UsageError(f"unknown dtype {dtype!r}: there are float32, bfloat16, float16")
    console = Console()
    with console.status("simulating layers"):
        found = list(cells(backend, chosen, hidden, tokens, rank, dtype))
    at = {(cell.hidden, cell.tokens, cell.rank): cell for cell in found}
    for r in rank:
        table = Table("hidden", *(f"{m:,} tokens" for m in tokens), title=f"r {r}: FLOPs, time")
        for width in hidden:
            table.add_row(f"{width}", *(_cell(at[width, m, r]) for m in tokens))
        console.print(table)
    console.print("\n".join(_told(found, backend, chosen.name, dtype)), highlight=False)
    if out is not None:
        _write(out, found, backend, chosen, dtype)
    return 0


def _cell(cell: Cell) -> str:
    colour = "green" if cell.time_ratio < 1 else "red" if cell.slower_with_fewer else "yellow"
    return f"{cell.flops_ratio:.2f}, [{colour}]{cell.time_ratio:.2f}[/]"


def _told(found: list[Cell], backend: str, gpu: str, dtype: str) -> list[str]:
    odd = [cell for cell in found if cell.slower_with_fewer]
    lines = [
        f"LoRA ({backend}) over full fine-tuning of one hidden x hidden layer in {dtype} on {gpu}; below 1 LoRA wins.",
        "A step is forward, backward with the gradient of x, and fused AdamW. Time is a sum of rooflines, without",
        f"launches: of those LoRA has {max(c.ops_ratio for c in found):.1f} times as many, and small shapes feel it.",
    ]
    if not odd:
        return [*lines, "Nowhere here is LoRA slower for fewer FLOPs."]
    lines.append(
        f"Slower for fewer FLOPs in {len(odd)} of {len(found)} cells (red): bound by memory, not by arithmetic."
    )
    for r, width in product(sorted({c.rank for c in odd}), sorted({c.hidden for c in odd})):
        here = [c for c in odd if (c.rank, c.hidden) == (r, width)]
        if here:
            worst = max(here, key=lambda c: c.time_ratio)
            lines.append(
                f"  r {r}, hidden {width}: from {min(c.tokens for c in here):,} tokens on,"
                f" at most {worst.time_ratio:.2f} of the time for {worst.flops_ratio:.2f} of the FLOPs"
            )
    return lines


def _write(out: Path, found: list[Cell], backend: str, gpu: Gpu, dtype: str) -> None:
    rows = [asdict(c) | {"flops_ratio": c.flops_ratio, "time_ratio": c.time_ratio} for c in found]
    told = {"kind": "crossover", "schema": 1, "backend": backend, "gpu": asdict(gpu), "dtype": dtype, "cells": rows}
    try:
        out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from None
