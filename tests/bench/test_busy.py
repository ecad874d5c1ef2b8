"""Whoever starts a run on a busy machine is told so, and the load stands in the rows."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli, environment
from bench.commands import run
from bench.record import FROZEN
from bench.verdicts import Verdict
from conformance.discovery import UsageError

CORES = os.cpu_count() or 1


@pytest.mark.parametrize(("load", "busy"), [(None, False), (0.0, False), (0.24, False), (0.26, True), (3.0, True)])
def test_busy_above_a_quarter_of_the_cores(load: float | None, busy: bool) -> None:  # noqa: FBT001
    said = environment.busy_cpu(None if load is None else load * CORES)
    assert (said is not None) is busy
    if said:
        assert f"({load * CORES:.1f} other processes run on {CORES} cores)" in said  # type: ignore[operator]


def said(out: Path, monkeypatch: pytest.MonkeyPatch, load: float, *options: str) -> list[str]:
    monkeypatch.setattr(environment, "load", lambda: load)
    missing = str(out / "none.jsonl")  # ends the run before anything is measured
    asked = ["run", "--backend", "reference", "--out", str(out), "--conformance", missing, *options]
    found = CliRunner().invoke(cli.app, asked)
    assert found.exit_code == 2
    return found.stderr.splitlines()


def test_one_line_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = said(tmp_path, monkeypatch, 7.5 * CORES)
    assert first.startswith(f"this machine is busy ({7.5 * CORES:.1f} other processes run on {CORES} cores)")
    assert len(rest) == 1
    assert "none.jsonl" in rest[0]


def test_nothing_on_a_quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(said(tmp_path, monkeypatch, 0.01)) == 1


def test_load_before_the_run_stands_in_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that judging the backends makes."""
    loads = iter([0.125])
    monkeypatch.setattr(environment, "load", lambda: next(loads))
    monkeypatch.setattr(run, "_judged", lambda *_: {FROZEN: Verdict("not judged")})

    def stop(_effort: Any, _judged: Any, shared: dict[str, Any], *_: Any) -> None:
        raise UsageError(f"load {shared['load']}")

    monkeypatch.setattr(run, "_locally", stop)
    with pytest.raises(UsageError, match=r"load 0\.125"):
        run.execute(run.Request(("reference",), "cpu-quick", "cpu", 1), tmp_path)


def test_busy_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(environment.shutil, "which", lambda _: "nvidia-smi")
    listed = SimpleNamespace(stdout="4711, 1024\n", returncode=0)
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: listed)
    assert environment.busy_gpu() == "the GPU is in use by 1 other process(es)"
    (line,) = said(tmp_path, monkeypatch, 0.0, "--device", "cuda")
    assert "--device cuda: the GPU is in use by 1 other process(es)" in line
    listed.stdout = "\n"
    assert environment.busy_gpu() is None


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="no Linux: the load is the system's average")
def test_load_counts_processes_that_run_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Itself not, and not those of the minute before."""
    lines = iter(["9.00 9.00 9.00 1/300 4711", "9.00 9.00 9.00 4/300 4711"] * 10)
    monkeypatch.setattr(environment.time, "sleep", lambda _: None)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: next(lines))
    assert environment.load() == 1.5
