"""Runs on disk: one Parquet file each, written whole or not at all. A file that cannot be read is set aside."""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.record import METRICS, SCHEMA, SCHEMA_VERSION
from conformance.discovery import UsageError

_MARK = b"lora_bench_schema"


class RunFileError(Exception):
    """One line: which file, and what is wrong with it."""


class CorruptError(RunFileError):
    """It is no whole Parquet file."""


class ForeignError(RunFileError):
    """It is a Parquet file of something else."""


@dataclass(frozen=True)
class Aside:
    """A file that cannot be read, under its new name; nothing is ever deleted."""

    path: Path
    why: str


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as a table of the schema; a column that a row lacks is null.

    Raises:
        ValueError: a metric or a column that the schema does not know.
    """
    listed = list(rows)
    known = set(SCHEMA.names)
    for row in listed:
        if row["metric"] not in METRICS:
            raise ValueError(f"unknown metric {row['metric']!r}")
        if extra := set(row) - known:
            raise ValueError(f"no column named {', '.join(sorted(extra))}")
    return pa.Table.from_pylist(listed, schema=SCHEMA)


def write(rows: pa.Table, path: Path) -> None:
    """Write beside and rename: a reader sees the whole file or none, and so does whoever finds the disk full.

    Raises:
        UsageError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")  # not by tempfile, whose files nobody else may read
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # where the folder could not be made, nothing is to be removed
            part.unlink()


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One run.

    Raises:
        CorruptError: no whole Parquet file.
        ForeignError: a Parquet file, but no run.
        RunFileError: a run of another schema, or a file that may not be read.
    """
    try:
        # Runs are small and many: starting threads would take longer than reading does.
        with pq.ParquetFile(path, memory_map=True) as file:
            version = (file.schema_arrow.metadata or {}).get(_MARK)
            if version == str(SCHEMA_VERSION).encode():
                return file.read(columns=columns, use_threads=False)
    except PermissionError:
        raise RunFileError(f"{path}: may not be read") from None
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None
    if version is None:
        raise ForeignError(f"{path}: a Parquet file, but not one of lora-bench")
    raise RunFileError(f"{path}: schema {version.decode()}, and this version reads {SCHEMA_VERSION}")


def files(where: Path) -> list[Path]:
    """The Parquet files of a folder and of the folders in it, or the file itself. What is hidden is still under way."""
    if where.is_file():
        return [where]
    found = sorted(where.rglob("*.parquet"))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(where).parts)]


def load(where: Path, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[Aside]]:
    """All runs in a folder, or one file, and what was set aside on the way: corrupt files are renamed ``*.corrupt``.

    Parquet files of something else, the tables of a report for one, are passed over in a folder that holds runs.

    Raises:
        UsageError: nothing is there, or it is of another schema.
    """
    if where.is_file():
        try:
            return read(where, columns), []
        except RunFileError as error:
            raise UsageError(str(error)) from None
    if not where.is_dir():
        raise UsageError(f"{where}: no such file or folder")
    tables, aside, foreign = [], [], []
    for path in files(where):
        try:
            tables.append(read(path, columns))
        except CorruptError as error:
            if path.exists():  # or else another reader set it aside meanwhile
                aside.append(_set_aside(path, str(error)))
        except ForeignError as error:
            foreign.append(f"; {error}")
        except RunFileError as error:
            raise UsageError(str(error)) from None
    if not tables:
        told = [*(f"; {a.why}, set aside" for a in aside), *foreign]
        raise UsageError(f"{where}: holds no run of lora-bench{''.join(told)}")
    return pa.concat_tables(tables), aside


def _set_aside(path: Path, why: str) -> Aside:
    """Renamed to a name that is free; left where it is if the folder may not be written."""
    names = (path.with_name(f"{path.name}.corrupt{n or ''}") for n in itertools.count())
    target = next(name for name in names if not name.exists())
    try:
        return Aside(path.rename(target), why)
    except OSError:
        return Aside(path, why)
