"""Runs on disk: one Parquet file each, written whole or not at all. A file that cannot be read is set aside."""

from __future__ import annotations

import os
import tempfile
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


@dataclass(frozen=True)
class Aside:
    """A file that was renamed, since it cannot be read; nothing is ever deleted."""

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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """One run.

    Raises:
        RunFileError: no Parquet file, or one of another schema.
    """
    try:
        found = pq.read_table(path, columns=columns, memory_map=True, partitioning=None)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunFileError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None
    version = (found.schema.metadata or {}).get(_MARK)
    if version is None:
        raise RunFileError(f"{path}: a Parquet file, but not one of lora-bench")
    if version != str(SCHEMA_VERSION).encode():
        raise RunFileError(f"{path}: schema {version.decode()}, and this version reads {SCHEMA_VERSION}")
    return found


def load(where: Path, columns: Sequence[str] | None = None) -> tuple[pa.Table, list[Aside]]:
    """All runs of a folder, or one file, and what was set aside on the way: corrupt files are renamed ``*.corrupt``.

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
    tables, aside = [], []
    for path in sorted(where.glob("*.parquet")):
        try:
            tables.append(read(path, columns))
        except RunFileError as error:
            if "schema" in str(error) or "not one of" in str(error):
                raise UsageError(str(error)) from None
            moved = path.with_name(path.name + ".corrupt")
            path.rename(moved)
            aside.append(Aside(moved, str(error)))
    if not tables:
        raise UsageError(f"{where}: holds no run of lora-bench" + "".join(f"; {a.why}, set aside" for a in aside))
    return pa.concat_tables(tables), aside
