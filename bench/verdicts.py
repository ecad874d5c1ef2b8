"""Whether a backend is right, before it is timed: the conformance suite's word on it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.record import FROZEN
from conformance.discovery import UsageError
from conformance.results import environment, version
from reports.results import IMPORT, Record, Results, ResultsError, read

CONFORMING, WRONG, NOT_JUDGED = "conforming", "wrong", "not judged"


@dataclass(frozen=True)
class Verdict:
    """``digest`` names the verdicts it rests on; ``reason`` is one line on what is red."""

    word: str
    version: str = ""
    digest: str = ""
    reason: str = ""

    def as_row(self) -> dict[str, Any]:
        """Its columns of a record."""
        return {"verdict": self.word, "verdict_digest": self.digest, "backend_version": self.version}


def judge(references: Sequence[str], out: Path) -> dict[str, Verdict]:
    """Run the suite's quick profile on backends, in processes of its own, into the new folder ``out``.

    Raises:
        UsageError: the run broke off.
    """
    command = [sys.executable, "-m", "conformance", "run", "--profile", "quick", "--out", str(out)]
    for reference in references:
        command += ["--backend", reference]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    path = out / "results.jsonl"
    if not path.exists():
        raise UsageError(f"conformance broke off: {(done.stderr.strip() or done.stdout.strip())[-300:]}")
    return verdicts(path, references)


def recorded(path: Path, references: Sequence[str]) -> dict[str, Verdict]:
    """The verdicts of a run of the suite that has been before: they must be of what is installed here now.

    Raises:
        UsageError: as ``verdicts``, or another suite, other invariants or other packages were judged.
    """
    found = verdicts(path, references)
    if stale := _stale(read(path)):
        raise UsageError(f"{path} is of {stale}: judge again, with lora-conformance run or without --conformance")
    return found


def _stale(results: Results) -> str:
    """In what the run differs from what is installed, or ""."""
    from conformance import plan
    from conformance.invariant import REGISTRY

    if results.suite != version():
        return f"suite {results.suite}, and {version()} is installed"
    if results.digest != plan.digest(REGISTRY.values()):
        return "other invariants than those of this suite"
    now = environment()["versions"]
    names = [name for name in {**results.versions, **now} if results.versions.get(name) != now.get(name)]
    return ", ".join(f"{name} {results.versions.get(name)}, and {now.get(name)} is installed" for name in names)


def verdicts(path: Path, references: Sequence[str]) -> dict[str, Verdict]:
    """What recorded results say of the backends.

    Raises:
        UsageError: the file is not one whole run, or says nothing of one of them.
    """
    try:
        results = read(path)
    except ResultsError as error:
        raise UsageError(str(error)) from None
    found = {FROZEN: Verdict(NOT_JUDGED)}
    for reference in references:
        name = results.names.get(reference)
        if name is None:
            raise UsageError(f"{path} says nothing of backend {reference!r}: it judged {', '.join(results.names)}")
        found[reference] = _verdict(results, name)
    return found


def _verdict(results: Results, name: str) -> Verdict:
    records = [record for record in results.records if record.backend == name]
    judged = results.backends[name]
    digest = _digest(results, records)
    red = sorted({record.invariant for record in records if record.red})
    if red == [IMPORT]:
        return Verdict(WRONG, judged, digest, f"cannot be imported: {records[0].cause}")
    if red:
        return Verdict(WRONG, judged, digest, f"red in {', '.join(red)}")
    if not any(record.verdict == "PASS" for record in records):
        return Verdict(WRONG, judged, digest, "passes no invariant")
    return Verdict(CONFORMING, judged, digest)


def _digest(results: Results, records: Sequence[Record]) -> str:
    lines = sorted(f"{r.version} {r.invariant} {r.facet} {r.dtype} {r.on} {r.verdict}" for r in records)
    return hashlib.sha256("\n".join([results.digest, *lines]).encode()).hexdigest()[:12]
