"""Tables as files. Parquet holds the very values; in CSV control characters of text are shown as escapes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from reports.columns import TABLES, described
from reports.escape import plain
from reports.report import Report


def write_tables(report: Report, folder: Path) -> None:
    """Every table that is not empty, and ``columns.csv``, which says what their columns are.

    ``benchmarks.csv`` has the newest run of each series only; the Parquet file has all of them.
    """
    described().to_csv(folder / "columns.csv", index=False)
    for name in TABLES:
        found = report.tables[name]
        if found.empty:
            continue
        pq.write_table(
            pa.Table.from_pandas(found, preserve_index=False), folder / f"{name}.parquet", compression="zstd"
        )
        shown = found[found["shown"]] if name == "benchmarks" else found
        pc.write_csv(_readable(name, shown), folder / f"{name}.csv")


def _readable(name: str, found: pd.DataFrame) -> pa.Table:
    columns = {column: _plain(found[column]) for column in TABLES[name]}
    return pa.table(columns)


def _plain(column: pd.Series) -> pa.Array:
    array = pa.Array.from_pandas(column)
    if pa.types.is_dictionary(array.type):
        safe = pa.array([None if text is None else plain(text) for text in array.dictionary.to_pylist()], pa.string())
        return pa.DictionaryArray.from_arrays(array.indices, safe).cast(pa.string())
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        encoded = array.dictionary_encode()
        safe = pa.array([plain(text) for text in encoded.dictionary.to_pylist()], pa.string())
        return pa.DictionaryArray.from_arrays(encoded.indices, safe).cast(pa.string())
    return array
