"""Where the results come from: runs, machines, versions, and what could not be read."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports import numbers
from reports.columns import TABLES
from reports.report import Report
from reports.sheet import Cell, Head, Sheet, figure, word


def conformance_runs(report: Report) -> Sheet:
    """A row for each results file."""
    return _plain(report, "conformance_runs", "Conformance runs")


def benchmark_runs(report: Report) -> Sheet:
    """A row for each run and machine."""
    return _plain(report, "benchmark_runs", "Benchmark runs", 100)


def problems(report: Report) -> Sheet:
    """What could not be read."""
    return _plain(report, "problems", "Could not be read")


def _plain(report: Report, table: str, title: str, most: int = 1000) -> Sheet:
    """A table as it is, less the columns that are empty; the newest rows, if there are many."""
    found = getattr(report, table)
    filled = [name for name in TABLES[table] if found[name].notna().any() and (found[name].astype(str) != "").any()]
    heads = [
        Head(name.replace("_", " "), TABLES[table][name].meaning, TABLES[table][name].type == "number")
        for name in filled
    ]
    rows = [[_cell(table, name, row[name]) for name in filled] for _, row in found.tail(most).iterrows()]
    return Sheet(table.replace("_", "-"), title, heads, rows, len(found) - len(rows))


def _cell(table: str, name: str, value: Any) -> Cell:
    column = TABLES[table][name]
    if pd.isna(value):
        return word("–", "quiet")
    if column.type == "number":
        return figure(value, column.unit)
    if column.type == "integer":
        return Cell(str(value), numbers.known(value))
    if column.type == "time":
        return word(f"{value:%Y-%m-%d %H:%M} UTC")
    if name in {"commit", "digest"}:
        return word(str(value)[:10])
    return word({True: "yes", False: "no"}.get(value, value) if column.type == "flag" else value)
