"""What a run found, in the terminal: for each case the backends beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import store
from bench.record import FROZEN, Status
from reports.escape import inline

_COLUMNS = ("case_id", "mode", "backend", "metric", "status", "value", "ci_low", "ci_high", "error", "verdict")
_BAD = {Status.OOM, Status.WRONG, Status.TIMEOUT, Status.CRASH}


def show(path: Path, console: Console) -> int:
    """Exit status 1 if anything has a status that no one wants."""
    rows = store.read(path, list(_COLUMNS)).to_pylist()
    at: dict[str, dict[tuple[str, str], dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        group = row["case_id"].removesuffix(f" {row['mode']}")
        at[group][row["mode"], row["backend"]][row["metric"]] = row
    for group, lines in at.items():
        console.print(Text(f"\n{group}", style="bold"))
        console.print(_table(lines))
    bad = failures(rows)
    for line in bad:
        console.print(inline(line), markup=False, highlight=False)
    return int(bool(bad))


def failures(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What has a status that no one wants; one line for one cause, however many cases it took with it."""
    cases: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] in _BAD:
            cases[row["status"], row["backend"], row["error"]].append(row["case_id"])
    return [
        f"{status}: {backend} on {ids[0] if len(ids) == 1 else f'{len(ids)} cases'}: {error}"
        for (status, backend, error), ids in cases.items()
    ]


def _table(lines: Mapping[tuple[str, str], dict[str, dict[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", min_width=6)
    table.add_column("backend", min_width=12, overflow="fold")
    for name, width in (("time", 8), ("x frozen", 11), ("x peft", 11), ("peak", 8), ("saved", 8)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    last = None
    for (mode, backend), metrics in lines.items():
        table.add_row("" if mode == last else mode, inline(backend), *_cells(metrics, backend))
        last = mode
    return table


def _cells(metrics: dict[str, dict[str, Any]], backend: str) -> list[str]:
    time = metrics.get("time_ms")
    if time is None or time["status"] != Status.OK:
        return [time["status"] if time else "", "", "", "", ""]
    floor = "1" if backend == FROZEN else _ratio(metrics.get("ratio_to_frozen"))
    peft = "1" if backend == "peft" else _ratio(metrics.get("ratio_to_peft"))
    return [_ms(time), floor, peft, _bytes(metrics.get("peak_alloc_delta")), _bytes(metrics.get("saved_bytes"))]


def _ms(row: dict[str, Any]) -> str:
    return f"{row['value']:.3g} ms"


def _ratio(row: dict[str, Any] | None) -> str:
    """With half the width of its interval."""
    if row is None or row["value"] is None:
        return ""
    return f"{row['value']:.2f} ± {(row['ci_high'] - row['ci_low']) / 2:.2f}"


def _bytes(row: dict[str, Any] | None) -> str:
    return "" if row is None or row["value"] is None else f"{row['value'] / 2**20:.4g} MiB"
