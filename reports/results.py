"""Read results files. A file that is truncated, foreign or of a later schema is refused in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

SCHEMA = 1
VERDICTS = ("CRASH", "TIMEOUT", "ERROR", "FAIL", "GAP-CLOSED", "GAP", "PASS", "UNSUPPORTED")  # the worst first
RED = frozenset(VERDICTS[:5])
IMPORT = "import"
_TYPES: dict[str, Any] = {  # of a record's fields; the others are text
    "examples": int,
    "seconds": int | float,
    "fraction": int | float | None,
    "case": dict,
    "features": list,
}


class ResultsError(Exception):
    """One line: which file, and what is wrong with it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path, self.what = path, what


@dataclass(frozen=True)
class Invariant:
    id: str
    family: str
    statement: str
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """As ``conformance.record`` describes it; ``after`` is worked out on reading."""

    backend: str
    version: str
    invariant: str
    family: str
    facet: str
    dtype: str
    on: str
    verdict: str
    examples: int = 0
    seconds: float = 0.0
    fraction: float | None = None
    reason: str = ""
    upstream: str = ""
    failure: str = ""
    cause: str = ""
    case: Mapping[str, Any] = field(default_factory=dict)
    reproduce: str = ""
    traceback: str = ""
    after: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def red(self) -> bool:
        return self.verdict in RED

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Where it was judged: what rests on what is compared within one place."""
        return (self.backend, self.facet, self.dtype, self.on)


@dataclass(frozen=True)
class Results:
    path: Path
    suite: str
    digest: str
    invariants: tuple[Invariant, ...]
    backends: Mapping[str, str]  # name -> version, in the order in which they were asked for
    names: Mapping[str, str]  # what was asked for, a registered name or package.module:object -> name
    claims: Mapping[str, tuple[str, ...]]  # name -> declared features
    profile: str
    seed: int
    models: tuple[str, ...]
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    started: str
    seconds: float
    records: tuple[Record, ...]

    @cached_property
    def red(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.red)


def read(path: Path) -> Results:
    """One results file.

    Raises:
        ResultsError: what it holds is not one whole run.
    """
    lines = _lines(path)
    header = lines[0]
    kinds = Counter(str(line.get("type")) for line in lines)
    if header.get("type") != "header" or "invariants" not in header:
        raise ResultsError(path, "is no results file of lora-conformance: its first line is no header")
    if not isinstance(header.get("schema"), int) or header["schema"] > SCHEMA:
        raise ResultsError(
            path, f"has schema {header.get('schema')}, this version reads {SCHEMA}: update lora-conformance"
        )
    planned = header.get("trials")
    if not kinds["footer"]:
        raise ResultsError(
            path, f"is truncated: {kinds['record']} of {planned} records and no footer; the run was cut off"
        )
    footer = lines[-1]
    if footer.get("type") != "footer" or kinds["footer"] + kinds["header"] != 2:
        raise ResultsError(path, "goes on after its footer: it holds more than one run")
    if not kinds["record"] == footer.get("records") == planned:
        seen = f"{kinds['record']} records, {footer.get('records')} by its footer, {planned} planned"
        raise ResultsError(path, f"is truncated: {seen}")
    try:
        return _results(path, header, lines[1:-1], footer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(path, f"has a malformed line: {type(error).__name__}: {error}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ResultsError(path, f"cannot be read: {why}") from None
    if not text:
        raise ResultsError(path, "is empty: the run was cut off before its first trial")
    *whole, rest = text.split("\n")
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(whole, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise ResultsError(path, f"line {number} is not JSON") from None
        if not isinstance(value, dict):
            raise ResultsError(path, f"line {number} is no JSON object")
        lines.append(value)
    if rest and not lines:
        raise ResultsError(path, "is no results file of lora-conformance: not one whole line")
    return [*lines, {"type": "cut off"}] if rest else lines


def _results(path: Path, header: Mapping[str, Any], lines: list[dict[str, Any]], footer: Mapping[str, Any]) -> Results:
    _check_texts(header, lines)
    invariants = tuple(Invariant(**{**i, "after": tuple(i["after"])}) for i in header["invariants"])
    records = [_record(line) for line in lines]
    if any(record.invariant == IMPORT for record in records):
        invariants = (Invariant(IMPORT, IMPORT, "The backend can be imported."), *invariants)
    order = {i.id: n for n, i in enumerate(invariants)}
    if unknown := {record.invariant for record in records} - set(order):
        raise ValueError(f"no such invariant: {min(unknown)}")
    named = {b.get("name", b["reference"]): b.get("version", "") for b in header["backends"]}
    place = {name: n for n, name in enumerate(named)}
    records.sort(key=lambda r: (place[r.backend], order[r.invariant], r.facet, r.on, r.dtype))
    return Results(
        path=path,
        suite=header["suite"],
        digest=header["digest"],
        invariants=invariants,
        backends=named,
        names={b["reference"]: b.get("name", b["reference"]) for b in header["backends"]},
        claims={b["name"]: tuple(b.get("features", ())) for b in header["backends"] if "name" in b},
        profile=header["profile"],
        seed=header["seed"],
        models=tuple(header["models"]),
        device=dict(header["device"]),
        versions=dict(header["versions"]),
        command=header["command"],
        started=header["started"],
        seconds=float(footer["seconds"]),
        records=tuple(_with_roots(records, invariants)),
    )


def _check_texts(header: Mapping[str, Any], lines: list[dict[str, Any]]) -> None:
    for name in ("suite", "digest", "profile", "command", "started"):
        if not isinstance(header[name], str):
            raise TypeError(f"{name} is {str(header[name])[:40]!r}")
    about = [header["models"], header["versions"].values(), *(line.get("features", ()) for line in lines)]
    for backend in header["backends"]:
        words = (backend.get("name", ""), backend["reference"], backend.get("version", ""))
        about += [backend.get("features", ()), words]
    for one in header["invariants"]:
        about += [one["after"], (one["id"], one["family"], one["statement"])]
    if not all(isinstance(word, str) for words in about for word in words):
        raise TypeError("a name is no text")


def _record(line: Mapping[str, Any]) -> Record:
    if line.get("type") != "record" or line.get("verdict") not in VERDICTS:
        raise ValueError(f"neither a record nor a verdict: {line.get('type')} {line.get('verdict')}")
    known = {f.name for f in fields(Record)}
    given = {k: v for k, v in line.items() if k in known and k != "after"}
    for name, value in given.items():
        if not isinstance(value, _TYPES.get(name, str)) or isinstance(value, bool):
            raise TypeError(f"{name} is {str(value)[:40]!r}")
    return Record(**given)


def _with_roots(records: Iterable[Record], invariants: Iterable[Invariant]) -> list[Record]:
    """Each red record is told which red invariants it rests on, in the same place."""
    before: dict[str, set[str]] = {}
    for invariant in invariants:  # prerequisites are registered first
        before[invariant.id] = {up for one in invariant.after for up in {one, *before.get(one, ())}}
    records = list(records)
    red: dict[tuple[str, ...], list[str]] = {}
    for record in records:
        if record.red:
            red.setdefault(record.place, []).append(record.invariant)
    return [_after(record, before, red.get(record.place, [])) for record in records]


def _after(record: Record, before: Mapping[str, set[str]], red: list[str]) -> Record:
    if not record.red:
        return record
    rests_on = tuple(name for name in red if name in before[record.invariant])
    values = {f.name: getattr(record, f.name) for f in fields(Record)}
    return Record(**{**values, "after": rests_on})
