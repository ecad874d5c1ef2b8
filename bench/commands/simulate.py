"""``simulate``: will it fit, and what will it cost, without a GPU."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.simulate.devices import Gpu, device
from bench.simulate.estimate import Estimate, Setting, full, lora
from bench.simulate.tracker import Category
from conformance.discovery import UsageError, check_name

_GIB, _MIB, _TERA = 2**30, 2**20, 10**12
_DTYPES = ("float32", "bfloat16", "float16")


def execute(
    model: str,
    backend: str,
    *,
    r: int,
    batch: int,
    seq: int,
    gpu: str,
    alpha: float = 32.0,
    dtype: str = "bfloat16",
    adapter_dtype: str | None = None,
    target: Sequence[str] = (),
    checkpointing: bool | None = None,
    out: Path | None = None,
) -> int:
    """LoRA beside full fine-tuning, with and without activation checkpointing; exit status 0.

    model: a built-in name (``bench.models.CONFIGURATIONS``), a transformers id, a folder or a config.json.
    backend: as in ``run``; it needs the Model facet. r, alpha: of the adapters. batch, seq: tokens of one step.
    gpu: a name of ``bench.simulate.devices.GPUS``. dtype: of the model; adapter_dtype: of A and B, by default the same.
    target: suffixes of module paths, repeatable; by default all projections. checkpointing: None shows both.
    out: a file for the same figures as JSON.

    Options: --model/-m, --backend/-b, --r, --batch, --seq, --gpu, --alpha, --dtype, --adapter-dtype, --target/-t,
    --checkpointing/--no-checkpointing, --out/-o.

    Raises:
        UsageError: a name that is unknown, with the nearest one; a number below 1; a file that cannot be written.
    """
    check_name(backend)
    chosen = device(gpu)
    for name, value in {"--r": r, "--batch": batch, "--seq": seq}.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    for name in filter(None, (dtype, adapter_dtype)):
        if name not in _DTYPES:
            raise UsageError(f"unknown dtype {name!r}: there are {', '.join(_DTYPES)}")
    setting = Setting(model, backend, r, batch, seq, alpha, dtype, adapter_dtype or dtype, tuple(target))
    console = Console()
    found: list[Estimate] = []
    for method, on in product((lora, full), (False, True) if checkpointing is None else (checkpointing,)):
        with console.status(f"simulating {method.__name__}{' with checkpointing' if on else ''}"):
            found.append(_quietly(method, setting, chosen, checkpointing=on))
    _show(console, setting, chosen, found)
    if out is not None:
        _write(out, setting, chosen, found)
    return 0


def _quietly(method: Callable[..., Estimate], *arguments: object, checkpointing: bool) -> Estimate:
    """Libraries warn each other of names that go away, which is nothing that a reader of the figures can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return method(*arguments, checkpointing=checkpointing)


def _show(console: Console, setting: Setting, gpu: Gpu, found: list[Estimate]) -> None:
    heads = [f"{e.method}{', checkpointing' if e.checkpointing else ''}" for e in found]
    table = Table("", *heads, title=f"{setting.model}, {setting.batch} x {setting.seq} tokens, on {gpu.name}")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(label: str, cell: Callable[[Estimate], str], *, last: bool = False) -> None:
        table.add_row(label, *(cell(estimate) for estimate in found), end_section=last)

    for category in Category:
        row(category, lambda e, c=category: f"{e.memory[c] / _GIB:.2f} GiB")  # type: ignore[misc]
    row("peak", lambda e: f"{e.peak / _GIB:.2f} GiB")
    row(
        f"fits in {gpu.memory / _GIB:.0f} GiB",
        lambda e: f"{'yes' if e.fits(gpu) else 'no'}, {e.peak / gpu.memory:.0%}",
        last=True,
    )
    row("TFLOP per step", lambda e: f"{e.flops / _TERA:.2f}")
    row("operations", lambda e: f"{e.n_ops}")
    row("time per step, at least", lambda e: f"{1000 * e.seconds:.1f} ms")
    row("of which memory-bound", lambda e: f"{e.memory_bound:.0%}")
    row("tokens/s, at most", lambda e: f"{e.tokens_s:,.0f}", last=True)
    row("trainable parameters", lambda e: f"{e.trainable_params:,}")
    row("share of all", lambda e: f"{e.trainable_params / e.total_params:.3%}")
    row("adapter file", lambda e: "" if e.file_bytes is None else f"{e.file_bytes / _MIB:.1f} MiB")
    console.print(table)
    console.print("\n".join(conditions(setting, gpu)), style="dim", highlight=False)


def conditions(setting: Setting, gpu: Gpu) -> list[str]:
    """Under which assumptions the figures hold."""
    targets = ", ".join(setting.targets) or "all projections of attention and feed-forward blocks"
    return [
        f"{setting.backend}, r {setting.r}, on {targets}.",
        f"Model in {setting.dtype}, A and B in {setting.adapter_dtype}.",
        "One training step after the first: forward, transformers' own cross-entropy, backward, fused AdamW.",
        f"AdamW's two states have the dtype of what is trained: LoRA {setting.adapter_dtype}, full {setting.dtype}.",
        "Full fine-tuning keeps no float32 copy of the weights.",
        "Memory: tensors at the peak, in blocks of 512 bytes. Fused attention without dropout, no key-value cache.",
        "Not counted: the driver's context, fragmentation, workspaces inside kernels.",
        "Time: a bound, not a forecast. Each operation's roofline in turn; causal attention counts in full.",
        "Left out of it: launches, caches, fusion, overlap.",
        f"Peak rates and memory of the GPU: {gpu.source}.",
    ]


def _write(out: Path, setting: Setting, gpu: Gpu, found: list[Estimate]) -> None:
    figures = [{**asdict(e), "tokens_s": e.tokens_s, "fits": e.fits(gpu)} for e in found]
    head = {"kind": "simulate", "schema": 1}  # known to `reports`
    told = {**head, "setting": asdict(setting), "gpu": asdict(gpu), "conditions": conditions(setting, gpu)}
    try:
        out.write_text(json.dumps(told | {"steps": figures}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from None
