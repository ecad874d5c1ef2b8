"""Benchmark figures put beside each other: by case, over all cases, and where memory stands against throughput."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from reports.inputs.benchmarks import FROZEN, OK
from reports.report import Report
from reports.suites import BUT_GAPS, CONFORMS

TRAINING = ("fwd", "bwd", "step")
MODES = (*TRAINING, "merge", "load", "switch", "mixed")
MODE_NAMES = {"fwd": "forward", "bwd": "backward", "step": "step", "mixed": "mixed batch"}
PANELS = 16  # cases with figures of their own
ROWS = 320  # backends times panels, so that many backends do not make the page large
RATIOS = ("ratio_to_frozen", "ratio_to_peft")


class Figure(NamedTuple):
    """One row of the benchmarks, as far as a panel shows it; value and interval are NaN unless status is ok."""

    mode: str
    backend: str
    metric: str
    unit: str
    status: str
    value: float
    ci_low: float
    ci_high: float
    error: str


@dataclass(frozen=True)
class Panel:
    """One case on one machine. figures: by mode and backend, then by metric."""

    id: str
    title: str
    place: str
    figures: Mapping[tuple[str, str], Mapping[str, Figure]]

    @property
    def modes(self) -> list[str]:
        found = {mode for mode, _ in self.figures}
        return [mode for mode in MODES if mode in found] + sorted(found - set(MODES))


def newest(report: Report) -> pd.DataFrame:
    """The rows that are shown, with ``group``, the case without its mode, and ``place``, the machine."""
    rows = report.benchmarks[report.benchmarks["shown"]].copy()
    cases = rows[["case_id", "mode"]].astype(str).drop_duplicates("case_id")
    groups = {case: case.removesuffix(f" {mode}") for case, mode in cases.itertuples(index=False)}
    rows["group"] = rows["case_id"].map(groups).astype("category")
    keys = rows.groupby(["device_name", "threads"], observed=True, dropna=False, sort=False)
    names = [f"{device}, {threads} thread{'' if threads == 1 else 's'}" for device, threads in keys.groups]
    rows["place"] = pd.Categorical.from_codes(keys.ngroup().to_numpy(), names)
    return rows


def doubts(report: Report) -> dict[str, str]:
    """By backend, as benchmarks name it: why its figures are not those of a right implementation."""
    found: dict[str, str] = {}
    for suite in report.suites:
        for run in suite.runs:
            for reference, name in run.names.items():
                standing = suite.standing(suite.label(name, run.backends.get(name, "")))
                if standing not in {CONFORMS, BUT_GAPS}:
                    found.setdefault(reference, standing)
    wrong = report.benchmarks[report.benchmarks["shown"] & (report.benchmarks["verdict"] == "wrong")]
    return {**{str(name): "does not conform" for name in wrong["backend"].unique()}, **found}


def overall(rows: pd.DataFrame) -> pd.DataFrame:
    """By place, backend and mode of training: geometric means over the cases, with the range of them.

    Columns: place, backend, mode, of (cases that anyone was asked to run), and for each ratio and for ``memory`` (the
    peak over that of the frozen layer): its mean, its ``_low`` and ``_high``, and ``_cases`` that it is the mean of.
    """
    training = rows[rows["mode"].isin(TRAINING)]
    asked = training.groupby(["place", "mode"], observed=True)["case_id"].nunique().rename("of")
    keys = ["place", "backend", "mode"]
    everyone = training[training["backend"] != FROZEN].groupby(keys, observed=True).size().index
    found = pd.DataFrame(index=everyone)
    values = training[training["status"] == OK]
    for name in RATIOS:
        found = found.join(_means(values[values["metric"] == name], keys, name))
    peaks = values[(values["metric"] == "peak_alloc_delta") & (values["value"] > 0)]
    floor = peaks.loc[peaks["backend"] == FROZEN, ["place", "case_id", "value"]]
    over = peaks[peaks["backend"] != FROZEN].merge(floor, on=["place", "case_id"], suffixes=("", "_floor"))
    over["value"] = over["value"] / over["value_floor"]
    found = found.join(_means(over, keys, "memory")).reset_index()
    return found.merge(asked.reset_index(), on=["place", "mode"])


def _means(rows: pd.DataFrame, keys: list[str], name: str) -> pd.DataFrame:
    logs = np.log(rows["value"].where(rows["value"] > 0))
    grouped = logs.groupby([rows[key] for key in keys], observed=True)
    made = pd.DataFrame({name: np.exp(grouped.mean()), f"{name}_cases": grouped.count()})
    made[f"{name}_low"], made[f"{name}_high"] = np.exp(grouped.min()), np.exp(grouped.max())
    return made


def panels(rows: pd.DataFrame) -> tuple[list[Panel], int]:
    """Cases in the order in which they were measured, and how many are left out."""
    order = rows[["place", "group"]].drop_duplicates()
    backends = max(rows["backend"].nunique(), 1)
    kept = order.head(max(1, min(PANELS, ROWS // backends)))
    made = []
    for number, (place, group) in enumerate(kept.itertuples(index=False)):
        here = rows[(rows["group"] == group) & (rows["place"] == place)]
        made.append(_panel(number, str(place), str(group), here))
    return made, len(order) - len(kept)


def _panel(number: int, place: str, group: str, here: pd.DataFrame) -> Panel:
    found: dict[tuple[str, str], dict[str, Figure]] = {}
    for *words, value, low, high, error in here[list(Figure._fields)].itertuples(index=False):
        mode, backend, metric, unit, status = (str(text or "") for text in words)
        one = Figure(mode, backend, metric, unit, status, value, low, high, "" if pd.isna(error) else str(error))
        found.setdefault((one.mode, one.backend), {})[one.metric] = one
    return Panel(f"case-{number}", group, place, found)


def frontier(points: pd.DataFrame) -> pd.Series:
    """Which points no other one beats: none needs less memory for as much throughput, or gives more for as little.

    points: columns memory (lower is better), throughput (higher is better) and conforms; only those that conform count.
    """
    best = pd.Series(data=False, index=points.index)
    known = points[points["conforms"]].dropna(subset=["memory", "throughput"])
    highest = -np.inf
    for index, point in known.sort_values(["memory", "throughput"], ascending=[True, False]).iterrows():
        if point["throughput"] > highest:
            best[index], highest = True, point["throughput"]
    return best
