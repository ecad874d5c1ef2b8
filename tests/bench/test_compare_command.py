"""``compare`` as a whole: what it shows and writes, and its exit status."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import QUIET, START, case, row, run

from bench import store
from bench.commands.compare import execute, figure
from conformance.discovery import UsageError


def put(path: Path, *rows: dict[str, Any]) -> Path:
    store.write(store.table(rows), path)
    return path


def compared(old: Path, new: Path, comment: Path | None = None) -> int:
    return execute(old, new, gate=0.04, markdown=comment)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


class TestExitStatus:
    def test_0_for_a_run_and_itself(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        store.write(run(np.random.default_rng(0), QUIET), tmp_path / "a.parquet")
        assert compared(tmp_path / "a.parquet", tmp_path) == 0
        told = capsys.readouterr().out
        assert "5 same" in told
        assert "both runs are of the same commit" in told

    def test_1_for_one_byte_more(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        old = put(tmp_path / "old.parquet", row(0, "a", "saved_bytes", 1_000_000.0))
        new = put(tmp_path / "new.parquet", row(0, "a", "saved_bytes", 1_000_001.0))
        assert compared(old, new) == 1
        assert "1,000,000 B → 1,000,001 B   +1 B" in capsys.readouterr().out
        assert compared(new, old) == 0

    def test_bad_input_is_one_line(self, tmp_path: Path) -> None:
        old = put(tmp_path / "old.parquet", row(0, "a", "flops", 1.0))
        with pytest.raises(UsageError, match="no such file or folder"):
            compared(old, tmp_path / "missing")
        with pytest.raises(UsageError, match="in common"):
            compared(old, put(tmp_path / "new.parquet", row(0, "b", "flops", 1.0)))
        with pytest.raises(UsageError, match="no rows"):
            compared(old, put(tmp_path / "empty.parquet"))
        with pytest.raises(UsageError, match=r"comment\.md cannot be written"):
            compared(old, old, tmp_path / "missing" / "comment.md")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_disk_is_one_line(self, tmp_path: Path) -> None:
        old = put(tmp_path / "old.parquet", row(0, "a", "flops", 1.0))
        with pytest.raises(UsageError, match="/dev/full cannot be written: No space left on device"):
            compared(old, old, Path("/dev/full"))


class TestWhichRun:
    def test_a_folder_stands_for_its_newest_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, day, value in (("z", 0, 7.0), ("a", 2, 1.0), ("m", 1, 7.0)):
            when = {"run_id": f"run-{name}", "timestamp": START + timedelta(days=day)}
            put(tmp_path / f"{name}.parquet", row(0, "a", "flops", value, **when))
        old = put(tmp_path / "old" / "old.parquet", row(0, "a", "flops", 1.0))
        assert compared(old, tmp_path) == 0
        assert "run-a of 2026-01-03 00:00 UTC" in capsys.readouterr().out

    def test_a_run_in_several_files_is_one_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a", "b"):
            put(tmp_path / f"{name}.parquet", row(0, name, "flops", 1.0))
        assert compared(tmp_path, tmp_path) == 0
        assert "2 same" in capsys.readouterr().out

    def test_what_was_set_aside_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        put(tmp_path / "good.parquet", row(0, "a", "flops", 1.0))
        (tmp_path / "bad.parquet").write_bytes(b"no parquet")
        assert compared(tmp_path, tmp_path) == 0
        assert "set aside as bad.parquet.corrupt" in capsys.readouterr().out
        assert (tmp_path / "bad.parquet.corrupt").read_bytes() == b"no parquet"


class TestDifferences:
    def test_of_the_environment_are_shown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        old = put(tmp_path / "old.parquet", row(0, "a", "flops", 1.0, host="aa", load=0.1, commit="1" * 40))
        changed = {"torch": "2.14.0", "host": "bb", "load": 9.0, "commit": "2" * 40, "dirty": True}
        new = put(tmp_path / "new.parquet", row(0, "a", "flops", 1.0, **changed))
        assert compared(old, new) == 0
        told = capsys.readouterr().out
        assert "torch differs: 2.13.0 → 2.14.0" in told
        assert "host differs: aa → bb" in told
        assert "load differs" not in told
        assert "commit 1111111111\n" in told
        assert "commit 2222222222 with uncommitted changes" in told

    def test_other_threads_are_never_mixed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        kept = row(0, "a", "n_ops", 1.0)
        old = put(tmp_path / "old.parquet", kept, row(0, "a", "flops", 1.0))
        new = put(tmp_path / "new.parquet", kept, row(0, "a", "flops", 2.0, threads=4))
        assert compared(old, new) == 0
        told = capsys.readouterr().out
        assert "1 missing · 1 new · 1 same" in told
        assert "threads differs: 2 → 2, 4" in told

    def test_what_one_run_lacks_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        kept = [row(0, "a", "flops", 1.0)]
        gone = [row(n, name, "flops", 1.0) for n in (1, 2, 3, 4) for name in ("a", "b")]
        comment = tmp_path / "comment.md"
        old, new = put(tmp_path / "old.parquet", *kept, *gone), put(tmp_path / "new.parquet", *kept)
        assert compared(old, new, comment) == 0
        told = " ".join(capsys.readouterr().out.split())
        ids = ", ".join(case(n).case_id for n in (1, 2, 3))
        assert "8 missing · 1 same" in told
        assert f"- only in the old run: 8 figures of a, b on {ids} and 1 more" in told
        assert "| missing" not in comment.read_text()
        compared(new, old)
        assert "only in the new run: 8 figures" in " ".join(capsys.readouterr().out.split())

    def test_first_calls_are_shown_in_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, factor in (("old", 1.0), ("new", 2.0)):
            rows = [row(n, "a", "first_ms", factor ** (n - 1), n=1) for n in range(3)]
            put(tmp_path / f"{name}.parquet", *rows)
        comment = tmp_path / "comment.md"
        assert compared(tmp_path / "old.parquet", tmp_path / "new.parquet", comment) == 0
        told = " ".join(capsys.readouterr().out.split())
        line = "first_ms, taken once a run, is shown and not judged: new / old 1.00 (0.50 to 2.00, 3 series)"
        assert f"3 not judged - both runs are of the same commit - {line}" in told
        assert "no improvements\n\n3 not judged\n" in comment.read_text()
        assert "ambiguous" not in comment.read_text()

    def test_the_gate_in_force_is_shown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, seed in (("old", 1), ("new", 2)):
            store.write(run(np.random.default_rng(seed), QUIET), tmp_path / f"{name}.parquet")
        execute(tmp_path / "old.parquet", tmp_path / "new.parquet", gate=0.001, markdown=None)
        assert "gates: time 0.1%, raised to " in capsys.readouterr().out


class TestMarkdown:
    def test_is_short_counted_and_escaped(self, tmp_path: Path) -> None:
        old = [row(n, "a", "flops", 1.0) for n in range(60)]
        new = [row(n, "a", "flops", 2.0) for n in range(50)]
        new += [row(50, "a", "flops", None, status="crash", error="<script>|\n**bold**")]
        new += [row(n, "a", "flops", 1.0) for n in range(51, 60)]
        comment = tmp_path / "comment.md"
        assert compared(put(tmp_path / "old.parquet", *old), put(tmp_path / "new.parquet", *new), comment) == 1
        text = comment.read_text()
        assert text.startswith("### Benchmarks: 51 regressions, no improvements\n\n1 broken · 50 worse · 9 same\n")
        assert r"| broken | a | flops | tiny/q 114x64 2x16 r8 float32 step | 1 FLOP | – |" in text
        assert r"ok → crash: &lt;script&gt;\| \*\*bold\*\* |" in text
        assert "… and 11 more" in text
        assert len(text.splitlines()) < 60

    def test_a_time_has_its_interval_and_p(self, tmp_path: Path) -> None:
        for name, shift in (("old", 0.0), ("new", 0.1)):
            rows = run(np.random.default_rng(3), QUIET, cases=1, shift=shift)
            store.write(rows, tmp_path / f"{name}.parquet")
        comment = tmp_path / "comment.md"
        assert compared(tmp_path / "old.parquet", tmp_path / "new.parquet", comment) == 1
        (line,) = [each for each in comment.read_text().splitlines() if each.startswith("| slower")]
        assert case(0).case_id in line
        assert r" | 1.100 \[1.0" in line
        assert "the time itself: +10.0%" in line


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "–"),
        (1.5, "ms", "1.500 ms"),
        (12345.678, "tokens/s", "12,346 tokens/s"),
        (16_777_217.0, "B", "16,777,217 B"),
        (3.0, "1", "3"),
        (-0.25, "ms", "-0.2500 ms"),
    ],
)
def test_figures(value: float | None, unit: str, text: str) -> None:
    assert figure(value, unit) == text
