"""Runs on disk: whole or not at all, whoever reads, writes or fills the disk meanwhile."""

import os
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_runs import QUIET, row, run

from bench import store
from bench.record import SCHEMA
from conformance.discovery import UsageError

HERE = Path(__file__).parent
WRITER = """
import sys, numpy as np
from pathlib import Path
from made_runs import QUIET, run
from bench import store
name, folder = sys.argv[1], Path(sys.argv[2])
rows = run(np.random.default_rng(0), QUIET, cases=20)
for n in range(40):
    store.write(rows, folder / f"{name}-{n}.parquet")
    store.write(rows, folder / "the-same.parquet")
"""


@pytest.fixture
def rows() -> pa.Table:
    return run(np.random.default_rng(0), QUIET)


def test_what_was_written_is_read(rows: pa.Table, tmp_path: Path) -> None:
    store.write(rows, tmp_path / "new" / "run.parquet")
    found, aside = store.load(tmp_path / "new")
    assert found.equals(rows)
    assert found.schema.names == SCHEMA.names
    assert found.schema.metadata == SCHEMA.metadata
    assert aside == []


def test_only_what_is_asked_for_is_read(rows: pa.Table, tmp_path: Path) -> None:
    store.write(rows, tmp_path / "run.parquet")
    assert store.load(tmp_path, ["value", "metric"])[0].column_names == ["value", "metric"]


def test_folders_in_a_folder_are_read_and_what_is_under_way_is_not(rows: pa.Table, tmp_path: Path) -> None:
    for name in ("b.parquet", "monday/runs/a.parquet", "monday/runs/.unfinished/c/d.parquet", ".e.parquet"):
        store.write(rows, tmp_path / name)
    assert [str(path.relative_to(tmp_path)) for path in store.files(tmp_path)] == ["b.parquet", "monday/runs/a.parquet"]
    assert store.load(tmp_path)[0].num_rows == 2 * rows.num_rows


def test_others_may_read_it(rows: pa.Table, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store.write(rows, tmp_path / "run.parquet")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.parquet").stat().st_mode) == 0o644


def test_a_row_that_the_schema_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown metric"):
        store.table([{**row(0, "a", "flops", 1.0), "metric": "flop"}])
    with pytest.raises(ValueError, match="no column named colour"):
        store.table([row(0, "a", "flops", 1.0, colour="red")])


class TestBadInput:
    @pytest.mark.parametrize("kept", [0, 3, 100, -200])
    def test_a_corrupt_file_is_set_aside_and_never_deleted(self, rows: pa.Table, tmp_path: Path, kept: int) -> None:
        store.write(rows, tmp_path / "good.parquet")
        content = (tmp_path / "good.parquet").read_bytes()[:kept]
        (tmp_path / "bad.parquet").write_bytes(content)
        found, (aside,) = store.load(tmp_path)
        assert found.num_rows == rows.num_rows
        assert aside.path == tmp_path / "bad.parquet.corrupt"
        assert "bad.parquet: not a readable Parquet file" in aside.why
        assert aside.path.read_bytes() == content
        assert store.load(tmp_path)[1] == []

    def test_nor_is_one_that_was_set_aside_before(self, rows: pa.Table, tmp_path: Path) -> None:
        store.write(rows, tmp_path / "good.parquet")
        for content in (b"first", b"second", b"third"):
            (tmp_path / "bad.parquet").write_bytes(content)
            store.load(tmp_path)
        assert {path.read_bytes() for path in tmp_path.glob("*.corrupt*")} == {b"first", b"second", b"third"}

    def test_a_corrupt_middle(self, rows: pa.Table, tmp_path: Path) -> None:
        store.write(rows, tmp_path / "good.parquet")
        content = bytearray((tmp_path / "good.parquet").read_bytes())
        content[4:400] = b"\xff" * 396
        (tmp_path / "schema.parquet").write_bytes(content)
        assert [aside.path.name for aside in store.load(tmp_path)[1]] == ["schema.parquet.corrupt"]

    def test_only_corrupt_files(self, tmp_path: Path) -> None:
        (tmp_path / "bad.parquet").write_bytes(b"PAR1")
        with pytest.raises(UsageError, match=r"holds no run.*bad\.parquet.*set aside"):
            store.load(tmp_path)

    def test_a_corrupt_file_that_was_named_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.parquet"
        path.write_bytes(b"PAR1")
        with pytest.raises(UsageError, match=r"bad\.parquet: not a readable"):
            store.load(path)
        assert path.exists()

    def test_a_parquet_file_of_something_else(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "theirs.parquet")
        with pytest.raises(UsageError, match=r"theirs\.parquet: a Parquet file, but not one of lora-bench"):
            store.load(tmp_path)
        assert (tmp_path / "theirs.parquet").exists()

    def test_is_passed_over_beside_runs(self, rows: pa.Table, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "theirs.parquet")
        store.write(rows, tmp_path / "run.parquet")
        found, aside = store.load(tmp_path)
        assert (found.num_rows, aside) == (rows.num_rows, [])
        assert (tmp_path / "theirs.parquet").exists()

    def test_another_version_of_the_schema(self, rows: pa.Table, tmp_path: Path) -> None:
        older = rows.replace_schema_metadata({"lora_bench_schema": "99"})
        pq.write_table(older, tmp_path / "old.parquet")
        with pytest.raises(UsageError, match=r"old\.parquet: schema 99, and this version reads 1"):
            store.load(tmp_path)
        assert (tmp_path / "old.parquet").exists()

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no run"):
            store.load(tmp_path)
        with pytest.raises(UsageError, match="no such file or folder"):
            store.load(tmp_path / "missing")


class TestFullDisk:
    def test_nothing_is_left_and_nothing_is_lost(
        self, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.write(rows, tmp_path / "run.parquet")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match=r"run\.parquet cannot be written: No space left on device"):
            store.write(rows.slice(0, 1), tmp_path / "run.parquet")
        assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]
        assert store.read(tmp_path / "run.parquet").num_rows == rows.num_rows

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_disk_that_fills_while_columns_are_written(
        self, rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
        with pytest.raises(UsageError, match="No space left on device"):
            store.write(rows, tmp_path / "run.parquet")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be(self, rows: pa.Table, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot be written"):
            store.write(rows, tmp_path / "file" / "run.parquet")


def test_many_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    """Two processes write runs of their own and one that both write; a reader never sees a part of one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    whole = run(np.random.default_rng(0), QUIET, cases=20)
    store.write(whole, tmp_path / "first.parquet")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for name in ("one", "two")
    ]
    seen = Counter[int]()
    while any(writer.poll() is None for writer in writers):
        found, aside = store.load(tmp_path, ["value"])
        assert aside == []
        assert found.num_rows % whole.num_rows == 0
        seen[found.num_rows // whole.num_rows] += 1
    for writer in writers:
        told = writer.communicate()[1]
        assert writer.returncode == 0, told.decode()
    assert len(seen) > 5  # it did read while they wrote
    found, aside = store.load(tmp_path)
    assert found.num_rows == (1 + 1 + 2 * 40) * whole.num_rows
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.suffix != ".parquet") == []
