"""How the newest run stands in a history, as the command tells it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_runs import QUIET, START, row, times

from bench import store
from bench.commands.history import SHOWN, execute, sparkline
from bench.history import RECENT, Course, Judged, gather, judge
from conformance.discovery import UsageError

Edit = Callable[[int, dict[str, Any]], None]
MEMORY = """
import json, resource, sys
from pathlib import Path
from bench import store
from bench.history import COLUMNS, gather, judge
table, _ = store.load(Path(sys.argv[1]), COLUMNS)
judged = judge(gather(table), 0.04)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
alarms = sorted({(each.backend, each.metric) for each in judged if each.course.alarm})
print(json.dumps({"rows": table.num_rows, "series": len(judged), "bytes": peak, "alarms": alarms}))
"""


def nightly(runs: int, edit: Edit = lambda *_: None) -> pa.Table:
    """Quiet nights of one case: the floor, a and b, and bytes of a."""
    generator, rows = np.random.default_rng(4), []
    for night in range(runs):
        labels = {"run_id": f"run{night}", "timestamp": START + timedelta(days=night), "commit": f"{night:040x}"}
        figures = [row(0, "a", "saved_bytes", 1e6, **labels), row(0, "a", "peak_alloc_delta", 4e6, **labels)]
        for each in [*times(generator, QUIET, 1, **labels), *figures]:
            edit(night, each)
            rows.append(each)
    return store.table(rows)


def scaled(first: int, last: int, factor: float, metric: str = "time_ms", *backends: str) -> Edit:
    """Runs first to last, exclusively, take ``factor`` as much."""

    def edit(night: int, each: dict[str, Any]) -> None:
        if first <= night < last and each["metric"] == metric and each["backend"] in (backends or ("a",)):
            each["value"] *= factor

    return edit


def courses(table: pa.Table) -> dict[tuple[str, str], Judged]:
    return {(each.backend, each.metric): each for each in judge(gather(table), 0.04)}


class TestTimes:
    def test_nothing_happened(self) -> None:
        assert {each.course for each in courses(nightly(20)).values()} == {Course.STEADY}

    def test_a_step_alarms_from_its_second_run_until_it_is_the_level(self) -> None:
        for since in range(1, RECENT + 4):
            found = courses(nightly(30 + since, scaled(30, 99, 1.1)))["a", "time_ms"].course
            expected = Course.APART if since == 1 else Course.WORSE if since <= RECENT else Course.STEADY
            assert found is expected, since

    def test_what_was_mended_alarms_no_more(self) -> None:
        found = courses(nightly(30, scaled(23, 27, 1.1)))["a", "time_ms"]
        assert (found.course, found.note) == (Course.STEADY, "recovered")
        assert [start for start, _, _ in found.stepped] == [23, 27]

    def test_what_was_half_mended_does(self) -> None:
        table = nightly(34, lambda night, each: [scaled(24, 29, 1.3)(night, each), scaled(29, 99, 1.12)(night, each)])
        assert courses(table)["a", "time_ms"].course is Course.WORSE

    def test_an_improvement_is_none(self) -> None:
        assert courses(nightly(30, scaled(25, 99, 0.9)))["a", "time_ms"].course is Course.BETTER

    def test_a_slower_machine_is_seen_by_the_floor(self) -> None:
        found = courses(nightly(30, scaled(25, 99, 1.3, "time_ms", "a", "b", "frozen")))
        assert found["a", "time_ms"].course is found["b", "time_ms"].course is Course.STEADY
        assert found["frozen", "time_ms"].course is Course.CHANGED

    def test_a_faster_floor_is_no_slower_backend(self) -> None:
        found = courses(nightly(30, scaled(25, 99, 0.8, "time_ms", "frozen")))
        assert found["a", "time_ms"].course is Course.CHANGED
        assert found["a", "time_ms"].note == "in relation to the floor only"

    def test_throughput_falls_to_the_worse(self) -> None:
        rows = [
            row(0, "a", "tokens_s", 90.0 if n > 15 else 100.0, run_id=f"{n:02}", timestamp=START + timedelta(days=n))
            for n in range(20)
        ]
        (found,) = judge(gather(store.table(rows), metric="tokens_s"), 0.04)
        assert found.course is Course.WORSE


class TestFigures:
    def test_one_byte_in_the_newest_run_alarms(self) -> None:
        def edit(night: int, each: dict[str, Any]) -> None:
            each["value"] += night == 19 and each["metric"] == "saved_bytes"

        found = courses(nightly(20, edit))["a", "saved_bytes"]
        assert found.course is Course.WORSE
        assert found.stepped == [(19, 1e6, 1e6 + 1)]

    def test_memory_has_its_own_gate(self) -> None:
        found = courses(nightly(20, scaled(18, 99, 1.002, "peak_alloc_delta")))
        assert found["a", "peak_alloc_delta"].course is Course.WORSE

    def test_a_lost_figure_alarms(self) -> None:
        def crash(night: int, each: dict[str, Any]) -> None:
            if night == 19 and each["backend"] == "b":
                each.update(status="crash", value=None)

        found = courses(nightly(20, crash))["b", "time_ms"]
        assert (found.course, found.note) == (Course.BROKEN, "crash")

    def test_what_never_worked_does_not(self) -> None:
        def never(_: int, each: dict[str, Any]) -> None:
            if each["backend"] == "b":
                each.update(status="unsupported", value=None)

        assert courses(nightly(20, never))["b", "time_ms"].course is Course.STEADY

    def test_what_the_newest_run_lacks_is_not_judged(self) -> None:
        table = pa.concat_tables([nightly(20), store.table([row(0, "c", "flops", 1.0, timestamp=START)])])
        assert courses(table)["c", "flops"].course is Course.ABSENT

    def test_a_series_twice_is_refused(self) -> None:
        with pytest.raises(UsageError, match="twice"):
            gather(store.table([row(0, "a", "flops", 1.0)] * 2))


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        store.write(nightly(20, scaled(17, 99, 1.1)), tmp_path / "runs" / "all.parquet")
        return tmp_path / "runs"

    def test_exit_status_and_what_is_shown(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(folder, backend=None, metric=None, gate=0.04, markdown=None) == 1
        told = capsys.readouterr().out
        assert "worse   a · time_ms · tiny/q 64x64" in told
        assert "1 worse · 4 steady" in told
        assert f"(2026-01-18 {17:040x}"[:22] in " ".join(told.split())
        assert execute(folder, backend="b", metric=None, gate=0.04, markdown=None) == 0
        assert "frozen" not in capsys.readouterr().out
        assert execute(folder, backend=None, metric="saved_bytes", gate=0.04, markdown=None) == 0
        assert execute(folder, backend=None, metric=None, gate=0.2, markdown=None) == 0

    def test_markdown(self, folder: Path, tmp_path: Path) -> None:
        (folder / "bad.parquet").write_bytes(b"")
        comment = tmp_path / "comment.md"
        assert execute(folder, backend=None, metric=None, gate=0.04, markdown=comment) == 1
        text = comment.read_text()
        assert text.startswith("### History: 1 alarm in 5 series\n\n1 worse · 4 steady\n")
        assert "| worse | a | time\\_ms | tiny/q 64x64 2x16 r8 float32 step | 1.3" in text
        assert "set aside as bad.parquet.corrupt" in text

    def test_many_steady_series_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [row(n, "a", metric, 1.0) for n in range(SHOWN) for metric in ("flops", "n_ops")]
        worse = [{**each, "run_id": "run1", "timestamp": START + timedelta(days=1)} for each in rows]
        worse[0] = {**worse[0], "value": 2.0}
        store.write(store.table([*rows, *worse]), tmp_path / "runs.parquet")
        assert execute(tmp_path, backend=None, metric=None, gate=0.04, markdown=None) == 1
        told = capsys.readouterr().out
        assert told.count("a · ") == 1
        assert f"1 worse · {2 * SHOWN - 1} steady" in told
        assert "--metric NAME lists it" in told
        execute(tmp_path, backend=None, metric="n_ops", gate=0.04, markdown=None)
        assert capsys.readouterr().out.count("a · n_ops · ") == SHOWN

    def test_a_short_history_says_what_it_can_show(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for runs, told in ((1, "there is nothing to compare it with yet"), (2, "found from 8 runs on"), (8, "")):
            store.write(nightly(runs), tmp_path / "runs.parquet")
            execute(tmp_path, backend=None, metric=None, gate=0.04, markdown=None)
            shown = " ".join(capsys.readouterr().out.split())
            assert told in shown
            assert ("nothing to compare" in shown, "8 runs on" in shown) == (runs == 1, runs == 2)

    def test_a_run_without_a_commit(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        put = store.table([row(0, "a", "flops", 1.0, commit=None, dirty=None)])
        store.write(put, tmp_path / "runs.parquet")
        execute(tmp_path, backend=None, metric=None, gate=0.04, markdown=None)
        assert "1 run, of 2026-01-01 no commit\n" in capsys.readouterr().out

    def test_bad_input_is_one_line(self, folder: Path, tmp_path: Path) -> None:
        for asked, message in (
            ({"metric": "time"}, "unknown metric 'time': did you mean 'time_ms'"),
            ({"backend": "c"}, "no run holds a figure of c"),
            ({"metric": "first_ms"}, "no run holds first_ms"),
            ({"markdown": tmp_path / "missing" / "x.md"}, "cannot be written"),
        ):
            with pytest.raises(UsageError, match=message):
                execute(folder, **{"backend": None, "metric": None, "gate": 0.04, "markdown": None, **asked})
        with pytest.raises(UsageError, match="no such file or folder"):
            execute(tmp_path / "missing", backend=None, metric=None, gate=0.04, markdown=None)


def test_sparklines() -> None:
    assert sparkline(np.array([1.0, np.nan, 2.0])) == "▁ █"
    assert sparkline(np.array([1.0, 1.001, 1.0])) == "▄▅▄"  # noise stays flat
    assert sparkline(np.array([np.nan])) == ""
    assert sparkline(np.array([0.0, 0.0])) == "▅▅"


@pytest.mark.slow
def test_a_million_rows_fit(tmp_path: Path) -> None:
    """2,000 series x 500 runs, samples in the files: what is read, found and needed. Speed is never a timed test;
    on two shared cores it took 2.5 to 3.4 s, 1.0 s of it imports.
    """
    generator = np.random.default_rng(0)
    metrics, backends = ("time_ms", "first_ms", "saved_bytes", "peak_reserved"), ("frozen", "a", "b", "c", "d")
    rows = [row(n, b, m, 1.0, samples=[1.0] * 10) for n in range(100) for b in backends for m in metrics]
    base = store.table(rows).drop_columns(["value", "run_id", "timestamp"])
    slower = np.array([each["backend"] == "a" and each["metric"] == "time_ms" for each in rows])
    noisy = np.array([each["metric"] != "saved_bytes" for each in rows])
    for night in range(500):
        value = np.exp(generator.normal(0, 0.01, len(rows)) * noisy) * np.where(slower & (night >= 495), 1.1, 1)
        table = base.append_column("value", pa.array(value)).append_column("run_id", pa.array([f"{night}"] * len(rows)))
        when = pa.array([START + timedelta(days=night)] * len(rows), pa.timestamp("ms", tz="UTC"))
        store.write(table.append_column("timestamp", when).select(store.SCHEMA.names), tmp_path / f"{night}.parquet")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert (told["rows"], told["series"]) == (1_000_000, 2000)
    assert told["alarms"] == [["a", "time_ms"]]
    assert told["bytes"] < 2 * 2**30
