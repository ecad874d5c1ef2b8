"""Processes that measure: what ends them, what ends with them, and what is not in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import gone, when

from bench.cases import Case, Mode
from bench.engines import processes
from bench.engines.processes import Worker

CASE = Case("tiny", "q", 48, 32, 4, 1, 64, Mode.STEP)
HERE = str(Path(__file__).parent)
PARENT = """
import sys
from pathlib import Path
from bench.engines.processes import Worker
from test_processes import CASE

print("main module is", __name__, flush=True)
if __name__ == "__main__":
    Worker("memory", "planted_backends:hanging_backend", [CASE], "cpu", 1, Path(sys.argv[1])).ask(0, 600)
"""


@pytest.mark.parametrize(("kills", "status"), [((7, 8), "oom"), ((7, 7), "crash")])
def test_killed_by_the_kernel_for_want_of_memory(
    kills: tuple[int, int], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so only by its count, here made up."""
    counts = iter(kills)
    monkeypatch.setattr(processes, "oom_kills", lambda: next(counts))
    monkeypatch.syspath_prepend(HERE)
    worker = Worker("memory", "planted_backends:killed_backend", [CASE], "cpu", 1, tmp_path / "log")
    try:
        reply = worker.ask(0, 300)
    finally:
        worker.stop()
    assert reply["status"] == status
    assert "for want of memory" in reply["error"]


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="no Linux: the kernel does not count")
def test_kernel_counts() -> None:
    assert 0 <= processes.oom_kills() <= processes.oom_kills()


def test_ends_with_its_parent_in_the_midst_of_a_case(tmp_path: Path) -> None:
    """And holds nothing of the parent's main module."""
    script, log = tmp_path / "parent.py", tmp_path / "log"
    script.write_text(PARENT)
    path = os.pathsep.join([HERE, *sys.path])
    command = [sys.executable, str(script), str(log)]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    when(lambda: parent.poll() is not None or (log.exists() and "hanging in" in log.read_text()))
    worker = int(log.read_text().partition("hanging in ")[2].split()[0])
    assert not gone(worker)
    parent.kill()
    assert parent.communicate()[0] == "main module is __main__\n"
    when(lambda: gone(worker))
