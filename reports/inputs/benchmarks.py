"""Benchmark runs: the Parquet files of ``lora-bench run``, without their raw samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from reports.columns import DTYPES, TABLES, typed
from reports.inputs.problem import InputError

SCHEMA = 1
KEY = ("case_id", "backend", "metric", "device_name", "threads")  # rows with equal keys are one series
FROZEN = "frozen"
OK = "ok"
BUSY = 0.25  # processes per core: from here on others are in the way
_MARK = b"lora_bench_schema"
_MADE_HERE = {"file", "shown"}  # columns that no file has
_FIGURES = [name for name in TABLES["benchmarks"] if name not in _MADE_HERE]
_RUNS = [name for name in TABLES["benchmark_runs"] if name not in _MADE_HERE]
_MOVING = {"load", "clocks_locked", "throttled", "peak_tflops", "peak_gbs"}  # may differ from row to row of one run
WANTED = list(dict.fromkeys([*_FIGURES, *_RUNS]))
_ARROW = {
    "text": pa.types.is_string,
    "label": pa.types.is_string,
    "integer": pa.types.is_integer,
    "number": pa.types.is_floating,
    "flag": pa.types.is_boolean,
    "time": pa.types.is_timestamp,
}


def read(path: Path) -> pa.Table:
    """The rows of one file, with the columns ``WANTED``.

    Raises:
        InputError: no whole Parquet file, not one of lora-bench, or of another schema.
    """
    try:
        if not path.stat().st_size:
            raise InputError(path, "is empty")
        with pq.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            _check(path, schema)
            return file.read(columns=WANTED, use_threads=False).select(WANTED).replace_schema_metadata()
    except (pa.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or "it is no whole Parquet file"
        raise InputError(path, f"cannot be read: {why}") from None


def _check(path: Path, schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(_MARK)
    if version is None:
        raise InputError(path, "is a Parquet file, but no run of lora-bench")
    if version != str(SCHEMA).encode():
        told = version.decode(errors="replace")
        raise InputError(path, f"has schema {told}, this version reads {SCHEMA}: update lora-conformance")
    for name in WANTED:
        column = TABLES["benchmarks"].get(name) or TABLES["benchmark_runs"][name]
        if name not in schema.names or not _ARROW[column.type](schema.field(name).type):
            raise InputError(path, f"has no column {name} of the type that its schema {SCHEMA} has")


def frames(found: Sequence[tuple[Path, pa.Table]]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Figures, runs, and what is to be said of them: a row that two files hold is taken once."""
    if not found:
        return typed("benchmarks", pd.DataFrame(columns=list(TABLES["benchmarks"]))), _runs(None), []
    tables = []
    for path, table in found:
        labels = pa.array([str(path)] * len(table), pa.string())
        tables.append(table.append_column("file", labels))
    joined = pa.concat_tables(tables)
    encoded = pa.table({name: _encoded(joined[name]) for name in joined.column_names})
    rows = encoded.to_pandas(integer_object_nulls=False, types_mapper=_nullable)
    once = ~rows.duplicated(["run_id", *KEY])
    notes = []
    if not once.all():
        notes.append(f"{(~once).sum()} benchmark rows are in more than one file, and were taken once")
        rows = rows[once]
    runs = _runs(rows)
    order = runs.drop_duplicates("run_id")["run_id"].tolist()  # oldest first
    age = rows["run_id"].map({name: n for n, name in enumerate(order)}).astype("int64")
    rows = rows.assign(age=age).sort_values("age", kind="stable", ignore_index=True)
    rows["shown"] = ~rows.duplicated(list(KEY), keep="last")
    return typed("benchmarks", rows), runs, [*notes, *_busy(runs, set(rows.loc[rows["shown"], "run_id"]))]


def _busy(runs: pd.DataFrame, shown: set[str]) -> Iterator[str]:
    """Runs that are shown although others were in the way when they began."""
    on_cpu = runs[(runs["device"] == "cpu") & runs["run_id"].isin(shown)]
    for run in on_cpu[on_cpu["load"] > BUSY * on_cpu["threads"].astype("float64")].itertuples():
        yield (
            f"Benchmark run {run.run_id} began on a busy machine (load {run.load:.1f}, {run.threads} threads): its"
            " times, and ratios of them, say little"
        )


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.dictionary_encode().unify_dictionaries() if pa.types.is_string(column.type) else column


def _nullable(of: pa.DataType) -> object:
    if pa.types.is_integer(of):
        return pd.Int64Dtype()
    return pd.BooleanDtype() if pa.types.is_boolean(of) else None


def _runs(rows: pd.DataFrame | None) -> pd.DataFrame:
    columns = list(TABLES["benchmark_runs"])
    if rows is None:
        return typed("benchmark_runs", pd.DataFrame(columns=columns))
    same = [name for name in columns if name not in {*_MOVING, "file", "timestamp"}]
    runs = rows[columns].drop_duplicates(same)
    text = {name: DTYPES["text"] for name in columns if TABLES["benchmark_runs"][name].type == "text"}
    runs = runs.astype(text).sort_values(["timestamp", "run_id"], kind="stable", ignore_index=True)
    return typed("benchmark_runs", runs)
