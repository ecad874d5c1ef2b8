"""A night as a whole, its commands parsed and their work faked: the order, what is kept, the exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_runs import QUIET, case, row, run
from typer.testing import CliRunner

import bench.cli
import bench.commands.nightly
import bench.commands.run
import conformance.cli
import conformance.commands.run
import reports.cli
from bench import store
from bench.commands.nightly import Request, execute
from conformance.discovery import UsageError
from conformance.results import Writer, environment

LEFT = {"conformance", "runs", "history.md", "history.json", "summary.md"}
ASKED = Request(("reference", "peft"), ("tiny-llama",), only=("bert",), engine="ray", address="auto")
APPS = {"conformance": conformance.cli.app, "bench": bench.cli.app, "reports": reports.cli.app}


class Commands:
    """Stands for the processes: ``judge`` and ``measure`` say what the commands do; the others are the real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[str] = []
        self.judge: Callable[[Path], int] = self.green
        self.measure: Callable[[Path], int] = self.measured()
        monkeypatch.setattr(conformance.commands.run, "execute", self._judge)
        monkeypatch.setattr(bench.commands.run, "execute", self._measure)
        monkeypatch.setattr(bench.commands.run, "check_ray", lambda _: None)

    def __call__(self, command: list[str]) -> int:
        self.started.append(" ".join(command[:2]))
        return CliRunner().invoke(APPS[command[0]], command[1:]).exit_code

    def _judge(self, asked: Any) -> int:
        self.judged = asked
        asked.out.mkdir()
        return self.judge(asked.out)

    def _measure(self, asked: Any, out: Path, engine: str, address: str | None) -> int:
        self.asked, self.engine = asked, (engine, address)
        return self.measure(out)

    @staticmethod
    def green(out: Path, status: int = 0) -> int:
        results = Writer(out / "results.jsonl")
        asked = {"digest": "d", "profile": "full", "seed": 0, "models": [], "backends": [], "invariants": []}
        results.header(trials=0, **asked, **environment())
        results.footer(status)
        results.close()
        (out / "matrix.md").write_text("# Matrix\n")
        return status

    @staticmethod
    def measured(number: int = 0, status: int = 0, edit: Callable[[pa.Table], pa.Table] = lambda t: t) -> Any:
        def measure(out: Path) -> int:
            store.write(edit(run(np.random.default_rng(number), QUIET, number=number)), out / f"run{number}.parquet")
            return status

        return measure


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(monkeypatch)


def night_of(out: Path) -> Path:
    """The newest one."""
    return max(path for path in out.iterdir() if path.is_dir())


def test_a_green_night(commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(ASKED, tmp_path, commands) == 0
    assert commands.started == ["conformance run", "bench run", "bench history", "reports build"]
    night = night_of(tmp_path)
    assert (commands.judged.backends, commands.judged.models) == (["reference", "peft"], ["tiny-llama"])
    assert commands.judged.out == night / "conformance"
    assert (commands.asked.backends, commands.asked.only) == (("reference", "peft"), ("bert",))
    assert (commands.asked.profile, commands.asked.device) == ("cpu-quick", "cpu")
    assert commands.asked.conformance == night / "conformance" / "results.jsonl"
    assert commands.engine == ("ray", "auto")
    assert {path.name for path in night.iterdir()} == {*LEFT, "report"}
    summary = (night / "summary.md").read_text()
    assert ": green\n" in summary
    assert "| history | no regression |" in summary
    assert "### History: no alarms" in summary
    assert "# Matrix" in summary
    assert str(night / "summary.md") in capsys.readouterr().out.replace("\n", "")


def test_without_the_extra_for_reports(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.commands.nightly, "find_spec", lambda _: None)
    assert execute(ASKED, tmp_path, commands) == 0
    assert {path.name for path in night_of(tmp_path).iterdir()} == LEFT
    assert "| report | not built, for want of lora" in (night_of(tmp_path) / "summary.md").read_text()


def test_what_conformance_finds_loses_no_benchmark(commands: Commands, tmp_path: Path) -> None:
    commands.judge = lambda out: commands.green(out, status=1)
    assert execute(ASKED, tmp_path, commands) == 1
    assert commands.started == ["conformance run", "bench run", "bench history", "reports build"]
    assert store.load(tmp_path)[0].num_rows == 5
    summary = (night_of(tmp_path) / "summary.md").read_text()
    assert "| conformance | something is red |" in summary
    assert "| history | no regression |" in summary


def test_conformance_that_breaks_off_leaves_the_judging_to_the_benchmarks(commands: Commands, tmp_path: Path) -> None:
    commands.judge = lambda out: (out / "results.jsonl").write_text("cut off") and 1
    assert execute(ASKED, tmp_path, commands) == 1
    assert commands.asked.conformance is None
    assert "| conformance | broke off with status 1 |" in (night_of(tmp_path) / "summary.md").read_text()


def test_without_a_new_run_the_history_is_not_asked(commands: Commands, tmp_path: Path) -> None:
    """It would judge the night before, and find nothing wrong."""
    commands.measure = lambda _: 1
    assert execute(ASKED, tmp_path, commands) == 1
    assert commands.started == ["conformance run", "bench run", "reports build"]
    assert "| benchmarks | broke off with status 1 |" in (night_of(tmp_path) / "summary.md").read_text()


def test_what_has_no_figure_is_red_and_listed_by_its_cause(commands: Commands, tmp_path: Path) -> None:
    def crash(out: Path) -> int:
        lost = [row(n, "a", "time_ms", None, status="crash", error="died | of SIGSEGV") for n in range(3)]
        lost.append(row(3, "b", "time_ms", None, status="oom", error="no memory"))
        store.write(store.table(lost), out / "run.parquet")
        return 1

    commands.measure = crash
    assert execute(ASKED, tmp_path, commands) == 1
    summary = (night_of(tmp_path) / "summary.md").read_text()
    assert "| benchmarks | not all could be measured |" in summary
    assert r"- crash: a on 3 cases: died \| of SIGSEGV" in summary
    assert f"- oom: b on {case(3).case_id}: no memory" in summary


def test_a_regression_of_the_second_night_is_red_and_stored(commands: Commands, tmp_path: Path) -> None:
    def more(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        return store.table({**r, "value": r["value"] + (r["metric"] == "saved_bytes")} for r in rows)

    assert execute(ASKED, tmp_path, commands) == 0
    first = night_of(tmp_path)
    first.rename(tmp_path / "20260101T000000Z")  # or both would be of one second
    commands.measure = commands.measured(1, edit=more)
    assert execute(ASKED, tmp_path, commands) == 1
    table, aside = store.load(tmp_path)
    assert (set(table["run_id"].to_pylist()), aside) == ({"run0", "run1"}, [])
    summary = (night_of(tmp_path) / "summary.md").read_text()
    assert "| benchmarks | all measured |" in summary
    assert "| history | a regression |" in summary
    assert r"| worse | a | saved\_bytes |" in summary
    assert "1,000,000 B → 1,000,001 B" in summary


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Request(("refrence",)), "unknown backend 'refrence': did you mean 'reference'"),
        (Request(("reference",), profile="cpuquick"), "unknown profile 'cpuquick': did you mean 'cpu-quick'"),
        (Request(("reference",), only=("nothing",)), "no case of cpu-quick has 'nothing' in its id"),
        (Request(("reference",), ("no/such/model",)), "model path 'no/such/model' does not exist"),
    ],
)
def test_bad_usage_is_told_before_anything_is_run(
    commands: Commands, tmp_path: Path, asked: Request, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        execute(asked, tmp_path, commands)
    assert (commands.started, list(tmp_path.iterdir())) == ([], [])
