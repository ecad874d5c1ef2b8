"""Write a results file: a header, one line per record as it arrives, and a footer without which it is truncated."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from conformance.limit import UnderWay
from conformance.record import SCHEMA, Record, Verdict
from conformance.violation import Failure

DISTRIBUTION = "lora-conformance"
_PACKAGES = (
    "torch",
    "numpy",
    "ml-dtypes",
    "hypothesis",
    "pytest",
    "pytest-xdist",
    "transformers",
    "peft",
    "safetensors",
)
_SHOWN_FRAMES = 12
_CALLER = "conformance/trial.py"


class Writer:
    """Appends to a new file. Whoever reads it while it is written, or after a kill, finds no footer."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.start = time.monotonic()
        self.file = path.open("x", encoding="utf-8")

    def header(self, **more: Any) -> None:
        self._line(
            "header", schema=SCHEMA, suite=version(), started=datetime.now(UTC).isoformat("T", "seconds"), **more
        )

    def record(self, record: Record) -> None:
        self.counts[record.verdict] += 1
        self._line("record", **asdict(record))

    def footer(self, exitstatus: int) -> None:
        seconds = round(time.monotonic() - self.start, 2)
        counts = {v.value: self.counts[v] for v in Verdict if self.counts[v]}
        self._line("footer", counts=counts, records=self.counts.total(), seconds=seconds, exitstatus=exitstatus)

    def close(self) -> None:
        self.file.close()

    def _line(self, kind: str, **more: Any) -> None:
        self.file.write(json.dumps({"type": kind, **more}) + "\n")
        self.file.flush()


def version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Where and how the run takes place; nothing is imported for it."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = {"kind": "cpu", "name": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    return {"device": device, "versions": versions, "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    if about.exists():
        for line in about.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def to_line(record: Record) -> str:
    return json.dumps(asdict(record))


def from_line(line: str) -> Record:
    given = json.loads(line)
    given["verdict"] = Verdict(given["verdict"])
    given["after"], given["features"] = tuple(given["after"]), tuple(given["features"])
    return Record(**given)


def unfinished(about: Mapping[str, str], now: UnderWay, seconds: float, limit: float) -> Record:
    """The record of a trial that was given up, or that took its process with it.

    about: the fields of a record that name the trial, and the invariant's statement.
    """
    verdict = Verdict.TIMEOUT if now.timed_out else Verdict.CRASH
    cause = f"no answer within {limit:g} s" if now.timed_out else f"the process died{_signal(now.stack)}"
    failure = Failure(
        invariant=about["invariant"],
        statement=about["statement"],
        backend=f"{about['backend']} {about['version']}".strip(),
        facet=about["facet"] + (f" on {about['on']}" if about["on"] else ""),
        dtype=about["dtype"],
        case=now.case,
        reproduce=now.reproduce or "(no case was being judged)",
    )
    *lines, reproduce = failure.text().split("\n")
    lines.append(f"  {'timeout' if now.timed_out else 'crash':<9}  {cause}")
    lines += [f"             {line.strip()}" for line in _frames(now.stack)]
    named = {f.name: about[f.name] for f in fields(Record) if f.name in about}
    return Record(
        **named,  # type: ignore[arg-type]
        verdict=verdict,
        seconds=round(seconds, 4),
        failure="\n".join([*lines, reproduce]),
        cause=cause,
        case=now.case,
        reproduce=now.reproduce,
        traceback=now.stack,
    )


def _signal(stack: str) -> str:
    head = stack.split("\n", 1)[0]
    return f": {head}" if head.startswith("Fatal Python error") else ""


def _frames(stack: str) -> list[str]:
    """The innermost frames of the thread that judged, down to where the suite called the backend."""
    threads = stack.split("most recent call first")
    judging = next((thread for thread in threads if _CALLER in thread), threads[-1])
    frames = [line for line in judging.partition(_CALLER)[0].splitlines() if line.lstrip().startswith("File ")]
    return [frame for frame in frames if "line" in frame][:_SHOWN_FRAMES]
