"""The matrix as the page's script reads it: trials by invariant and backend, and each counterexample once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from reports.escape import inline, plain
from reports.results import VERDICTS, Record
from reports.suites import Suite
from reports.summary import SHORT, Cell

TEXT = 6_000  # characters of one message or traceback
ROOM = 3_000_000  # characters of all messages of a page: what does not fit is in the tables
NONE = "–"
SIGNS = {**SHORT, "PASS": "✓"}


class Messages:
    """The texts of a page, each once; those that no room is left for are told of by name only."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.found: dict[tuple[str, ...], int] = {}
        self.listed: list[dict[str, Any]] = []
        self.left_out = 0

    def add(self, record: Record) -> int:
        """The number of the record's message, -1 where there is nothing to tell."""
        told = {
            "text": plain(_counterexample(record)),
            "cause": inline(record.cause),
            "reason": inline(record.reason),
            "reproduce": inline(record.reproduce),
            "trace": plain(record.traceback),
        }
        key = (*told.values(), record.upstream)
        if not any(key):
            return -1
        if key not in self.found:
            self.found[key] = len(self.listed)
            self.listed.append(self._fitting(told, record.upstream))
        return self.found[key]

    def _fitting(self, told: dict[str, str], upstream: str) -> dict[str, Any]:
        cut = {name: text if len(text) <= TEXT else f"{text[:TEXT]} … (cut)" for name, text in told.items() if text}
        if "trace" in cut and len(told["trace"]) > TEXT:
            cut["trace"] = f"(cut) … {told['trace'][-TEXT:]}"  # its end says what was raised
        size = sum(map(len, cut.values()))
        if size > self.room:
            self.left_out += 1
            return {"left": True, "cause": cut.get("cause", "")[:200]}
        self.room -= size
        return {**cut, "links": links(upstream)}


def data(suite: Suite, messages: Messages) -> dict[str, Any]:
    """cells: by "invariant.backend", the trials as numbers of [facet, dtype, model, verdict, message]."""
    made = suite.matrix
    invariants = [
        one for rows in made.rows.values() for one in rows if any((one.id, b) in made.cells for b in made.backends)
    ]
    row = {one.id: n for n, one in enumerate(invariants)}
    column = {name: n for n, name in enumerate(made.backends)}
    facets, dtypes, models = (_numbered(suite.records, name) for name in ("facet", "dtype", "on"))
    cells: dict[str, list[list[int]]] = {}
    for record in suite.records:
        where = [facets[record.facet], dtypes[record.dtype], models[record.on]]
        place = f"{row[record.invariant]}.{column[record.backend]}"
        cells.setdefault(place, []).append([*where, VERDICTS.index(record.verdict), messages.add(record)])
    return {
        "verdicts": VERDICTS,
        "signs": SIGNS,
        "invariants": [
            {
                "id": inline(i.id),
                "family": inline(i.family),
                "statement": inline(i.statement),
                "after": list(map(inline, i.after)),
            }
            for i in invariants
        ],
        "backends": [inline(f"{name} {version}") for name, version in made.backends.items()],
        "facets": list(map(inline, facets)),
        "dtypes": list(map(inline, dtypes)),
        "models": list(map(inline, models)),
        "cells": cells,
    }


def label(cell: Cell | None) -> str:
    """What a cell says: its worst verdict and in how many of its trials it was reached. The script says the same."""
    if cell is None or not cell.verdict:
        return NONE
    count = f"{cell.count}" if cell.count == cell.total else f"{cell.count}/{cell.total}"
    return f"{SIGNS.get(cell.verdict, cell.verdict)} {count}"


def links(text: str) -> list[str]:
    """Addresses that may be followed: https only, without characters that could end an attribute."""
    return [url for url in inline(text).split() if url.startswith("https://") and not set(url) & set("<>\"'`\\")]


def _counterexample(record: Record) -> str:
    """The failure without its command, which stands beside it."""
    lines = record.failure.split("\n")
    return "\n".join(line for line in lines if not (record.reproduce and record.reproduce in line))


def _numbered(records: Iterable[Record], name: str) -> dict[str, int]:
    return {value: n for n, value in enumerate(dict.fromkeys(getattr(record, name) for record in records))}
