"""A run under way: each finished group is a file, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from bench import store
from bench.engines.local import Group
from bench.figures import Row

FOLDER = ".unfinished"


@dataclass
class Unfinished:
    """``folder`` holds request.json, the conformance results, the log, and one Parquet file for each finished group."""

    folder: Path
    run_id: str
    started: str
    lock: IO[str]

    def done(self, group: Group) -> bool:
        return self._part(group).exists()

    def keep(self, group: Group, rows: list[Row]) -> None:
        store.write(store.table(rows), self._part(group))

    def finish(self, groups: list[Group], out: Path) -> Path:
        """Join the parts in order into one file of ``out``; then the folder is of no more use."""
        path = out / f"{self.run_id}.parquet"
        store.write(pa.concat_tables([store.read(self._part(group)) for group in groups]), path)
        (self.folder / "log.txt").replace(out / f"{self.run_id}.log")
        for results in (self.folder / "conformance").glob("results.jsonl"):
            results.replace(out / f"{self.run_id}.conformance.jsonl")
        shutil.rmtree(self.folder)
        self.lock.close()
        return path

    def _part(self, group: Group) -> Path:
        digest = hashlib.sha256("\n".join(case.case_id for case in group.cases).encode()).hexdigest()[:16]
        return self.folder / f"{digest}.parquet"


@contextmanager
def take_up(out: Path, request: dict[str, Any]) -> Iterator[Unfinished]:
    """The run in ``out`` that asked for the same and was cut off, or a new one. Another process's run is left alone."""
    wanted = json.dumps(request, sort_keys=True)
    found = next((run for folder in sorted((out / FOLDER).glob("*")) if (run := _locked(folder, wanted))), None)
    run = found or _new(out, wanted)
    try:
        yield run
    finally:
        run.lock.close()


def _locked(folder: Path, wanted: str) -> Unfinished | None:
    try:
        file = (folder / "request.json").open(encoding="utf-8")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = json.load(file)
    except (OSError, ValueError):  # another process is at it, or it was never begun
        file.close()
        return None
    if json.dumps(held["request"], sort_keys=True) != wanted or not (folder / "request.json").exists():
        file.close()
        return None
    return Unfinished(folder, held["run_id"], held["started"], file)


def _new(out: Path, wanted: str) -> Unfinished:
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    folder = out / FOLDER / run_id
    folder.mkdir(parents=True)
    text = json.dumps({"request": json.loads(wanted), "run_id": run_id, "started": now.isoformat()})
    part = folder / "request.json.part"
    part.write_text(text, encoding="utf-8")
    file = part.open(encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX)
    os.replace(part, folder / "request.json")  # noqa: PTH105 - says that it is atomic
    return Unfinished(folder, run_id, now.isoformat(), file)
