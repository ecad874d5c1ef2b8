"""The kill matrix: ``kill-matrix.csv`` and ``kills.csv``, as ``lora-conformance mutants`` writes them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from reports.inputs.problem import InputError, text_of

LIST = ["mutant", "killed by", "also found by", "defect", "thread"]
_SURVIVES = "SURVIVES "
_OTHERS = (["mutant", "invariant", "killed"], ["backend", "invariant", "facet"], ["dtype", "tier", "planted in"])
Rows = list[dict[str, Any]]


def read(path: Path) -> tuple[str, Rows]:
    """Rows of the table "mutants" or "kills", whichever the file holds; a cell of the matrix that is empty has none.

    Raises:
        InputError: it is neither.
    """
    lines = list(csv.reader(io.StringIO(text_of(path))))
    head, rows = lines[0], lines[1:]
    if any(head[: len(other)] == other for other in _OTHERS):
        raise InputError(path, "is a table of lora-conformance mutants that the report does not show")
    if not head or head[0] != "mutant" or len(head) < 2:
        raise InputError(path, "is no kill matrix of lora-conformance mutants: its head does not begin with mutant")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise InputError(path, f"line {number} has {len(row)} cells and the head {len(head)}: it is cut off")
    return ("mutants", [_mutant(row) for row in rows]) if head == LIST else ("kills", _kills(path, head, rows))


def _mutant(row: list[str]) -> dict[str, Any]:
    mutant, named, others, defect, thread = row
    each = [name for name in named.split(", ") if name]
    return {
        "mutant": mutant,
        "killed_by": " ".join(name for name in each if not name.startswith(_SURVIVES)),
        "survives": " ".join(name.removeprefix(_SURVIVES) for name in each if name.startswith(_SURVIVES)),
        "also_found_by": " ".join(others.split(", ")) if others else "",
        "defect": defect,
        "thread": thread,
    }


def _kills(path: Path, head: list[str], rows: list[list[str]]) -> Rows:
    found = []
    for mutant, *cells in rows:
        for invariant, cell in zip(head[1:], cells, strict=True):
            if cell not in {"", "0", "1"}:
                raise InputError(path, f"has {cell[:20]!r} in its matrix, which holds 0, 1 and empty cells")
            if cell:
                found.append({"mutant": mutant, "invariant": invariant, "killed": cell == "1"})
    return found


def named(kills: Rows, mutants: Rows) -> Rows:
    """Kills, each told whether the invariant is named for the mutant."""
    names = {m["mutant"]: {*m["killed_by"].split(), *m["survives"].split()} for m in mutants}
    return [
        {**kill, "named": kill["invariant"] in names[kill["mutant"]] if kill["mutant"] in names else None}
        for kill in kills
    ]
