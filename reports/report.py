"""What a report is made of: tidy tables, as ``reports.columns.TABLES`` documents them, and notes on how they came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from reports.columns import TABLES
from reports.suites import Suite


@dataclass(frozen=True)
class Report:
    """``tables`` holds every table of ``reports.columns.TABLES``, be it empty; each is an attribute too.

    suites: conformance, put together by version of the suite. notes: one line each on what a reader has to know.
    read: how many inputs were read; those that were not are the rows of ``problems``.
    """

    tables: Mapping[str, pd.DataFrame]
    suites: tuple[Suite, ...] = ()
    notes: tuple[str, ...] = ()
    read: int = 0

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name in TABLES:
            return self.tables[name]
        raise AttributeError(f"a report has no {name!r}; its tables are {', '.join(TABLES)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *TABLES]

    def __repr__(self) -> str:
        filled = ", ".join(f"{name} {len(table)}" for name, table in self.tables.items() if len(table))
        return f"<Report of {self.read} files: {filled or 'nothing'}>"
