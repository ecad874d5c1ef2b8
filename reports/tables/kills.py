"""The kill matrix: which invariant finds which broken backend."""

from __future__ import annotations

import pandas as pd

from reports.report import Report
from reports.sheet import Head, Sheet, figure, quantity, word


def mutants(report: Report) -> Sheet:
    """A row for each broken backend; those that survive come first."""
    heads = (
        Head("mutant", "a backend with one defect"),
        Head("named invariants", "which must find it"),
        quantity("also found by", "how many other invariants"),
        Head("defect"),
        Head("modelled on"),
    )
    rows = []
    for one in report.mutants.sort_values("survives", ascending=False, kind="stable").itertuples():
        names = one.killed_by.replace(" ", ", ")
        lived = f"SURVIVES {one.survives.replace(' ', ', ')}" if one.survives else ""
        told = word(", ".join(filter(None, (lived, names))), "bad" if lived else "good")
        others = len(one.also_found_by.split())
        rows.append([word(one.mutant), told, figure(others, "1"), word(one.defect), word(one.thread)])
    return Sheet("mutants", "Mutants", heads, rows)


def by_invariant(report: Report) -> Sheet:
    """A row for each invariant that was tried on mutants."""
    heads = (
        Head("invariant"),
        quantity("named for", "mutants that it must find"),
        quantity("of these found"),
        quantity("found in all", "of the mutants that it was tried on"),
        quantity("tried on", "mutants"),
    )
    rows = []
    for name, tried in report.kills.groupby("invariant", sort=False):
        named = tried[tried["named"].fillna(value=False)]
        told = [len(named), int(named["killed"].sum())] if tried["named"].notna().any() else [pd.NA, pd.NA]
        numbers = (*told, int(tried["killed"].sum()), len(tried))
        rows.append([word(name), *(figure(n, "1", "not told") for n in numbers)])
    return Sheet("killers", "Invariants", heads, rows)
