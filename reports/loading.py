"""Recorded results as tidy tables: ``load("results", "runs")``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from reports import suites
from reports.columns import TABLES, frame
from reports.escape import inline
from reports.inputs import benchmarks, conformance, documents, mutants
from reports.inputs.problem import InputError
from reports.report import Report
from reports.results import Results, ResultsError, read

MARK = "lora-report.json"  # lies in a folder that a report was written to: its tables are no results
_PATTERNS = ("*.jsonl", "*.parquet", "*.json", "kills.csv", "kill-matrix.csv")
Rows = list[dict[str, Any]]
Track = Callable[[list[Path]], Iterable[Path]]


def load(*paths: str | PathLike[str], track: Track = iter) -> Report:
    """Read results of any kind, files or folders, whichever they are.

    Conformance: ``*.jsonl``. Benchmarks: ``*.parquet``. What lora-bench simulate, crossover and history wrote:
    ``*.json``. The kill matrix: ``kill-matrix.csv`` and ``kills.csv``. Folders are searched through, hidden ones left
    out. What cannot be read is a row of ``problems`` and stops nothing. ``track`` wraps the files, to show progress.
    """
    reading = _Reading()
    for path in track(list(_files(map(Path, paths), reading))):
        reading.take(path)
    return reading.report()


class _Reading:
    def __init__(self) -> None:
        self.results: list[Results] = []
        self.runs: list[tuple[Path, pa.Table]] = []
        self.rows: dict[str, Rows] = {}
        self.problems: Rows = []
        self.read = 0

    def take(self, path: Path) -> None:
        try:
            self._take(path)
            self.read += 1
        except (InputError, ResultsError) as error:
            self.problem(error.path, error.what)

    def problem(self, path: Path, what: str) -> None:
        self.problems.append({"file": inline(path), "problem": inline(what)})

    def _take(self, path: Path) -> None:
        match path.suffix:
            case ".jsonl":
                results = read(path)
                _check(path, conformance.rows(suites.suites([results])))
                self.results.append(results)
            case ".parquet":
                self.runs.append((path, benchmarks.read(path)))
            case ".csv":
                self._keep(path, dict([mutants.read(path)]))
            case ".json":
                self._keep(path, documents.read(path))
            case _:
                raise InputError(path, "is no results file: .jsonl, .parquet, .json and .csv are read")

    def _keep(self, path: Path, found: dict[str, Rows]) -> None:
        _check(path, found)
        for table, rows in found.items():
            self.rows.setdefault(table, []).extend(rows)

    def report(self) -> Report:
        found = suites.suites(self.results)
        figures, runs, told = benchmarks.frames(self.runs)
        rows = {**self.rows, **conformance.rows(found), "problems": self.problems}
        rows["kills"] = mutants.named(rows.get("kills", []), rows.get("mutants", []))
        given: dict[str, pd.DataFrame] = {"benchmarks": figures, "benchmark_runs": runs}
        tables = {name: given[name] if name in given else frame(name, rows.get(name, ())) for name in TABLES}
        notes = [*suites.mixed(found), *(line for suite in found for line in suite.notes()), *told]
        return Report(tables, tuple(found), tuple(notes), self.read)


def _check(path: Path, found: dict[str, Rows]) -> None:
    """Whether the values have their columns' types, file by file, so that one that is odd spoils no other."""
    for table, rows in found.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # of numpy, for a number that is no integer
                frame(table, rows)
        except (TypeError, ValueError, OverflowError, RuntimeWarning) as error:
            why = " ".join(str(error).split())[:120]
            raise InputError(path, f"is malformed: a value of another type in {table} ({why})") from None


def _files(paths: Iterable[Path], reading: _Reading) -> Iterator[Path]:
    """Each file once, in order."""
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            reading.problem(path, "no such file or folder")
            continue
        found = sorted(_inside(path)) if path.is_dir() else [path]
        if not found:
            reading.problem(path, "holds no results")
        for file in found:
            if (real := file.resolve()) not in seen:
                seen.add(real)
                yield file


def _inside(folder: Path) -> Iterator[Path]:
    if (folder / MARK).exists():
        return
    for pattern in _PATTERNS:
        yield from (path for path in folder.glob(pattern) if path.is_file())
    for below in folder.iterdir():
        if below.is_dir() and not below.name.startswith(".") and not below.is_symlink():
            yield from _inside(below)
