"""The launcher of two ranks: what comes back, what a failure says, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conformance.two_processes import RankError, on_two_ranks

SILENCE = 30.0


def total(rank: int, of_each: int) -> tuple[int, float]:
    import torch
    import torch.distributed as dist

    tensor = torch.tensor([float(of_each * (rank + 1))])
    dist.all_reduce(tensor)
    return rank, tensor.item()


def raise_on_second(rank: int) -> None:
    import torch.distributed as dist

    if rank == 1:
        raise LookupError("no adapter here\nand more lines")
    dist.barrier()


def vanish(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL if rank == 0 else signal.SIGSTOP)


def hang(rank: int, folder: Path) -> None:
    (folder / f"{rank}.pid").write_text(str(os.getpid()), encoding="utf-8")
    print("about to hang", flush=True)  # noqa: T201 (a sign of life)
    time.sleep(600)


def alive(pid: int) -> bool:
    """Also for a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(folder: Path) -> list[int]:
    return [int(path.read_text(encoding="utf-8") or 0) for path in folder.glob("*.pid")]


def test_results_come_back_in_the_order_of_ranks() -> None:
    assert on_two_ranks(total, 5, silence=SILENCE) == [(0, 15.0), (1, 15.0)]


def test_failure_names_the_rank_that_failed_and_holds_its_traceback() -> None:
    with pytest.raises(RankError) as raised:
        on_two_ranks(raise_on_second, silence=SILENCE)
    assert str(raised.value) == "rank 1 ended with exit status 1: LookupError: no adapter here"
    (note,) = raised.value.__notes__
    assert "in raise_on_second" in note


def test_rank_that_dies_is_told_from_one_that_waits() -> None:
    with pytest.raises(RankError, match=r"^rank 0 ended with exit status -9: it printed nothing"):
        on_two_ranks(vanish, silence=SILENCE)


@pytest.mark.slow
def test_ranks_that_hang_are_ended_and_leave_no_process(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"^rank \d was silent for 20 s: about to hang"):
        on_two_ranks(hang, tmp_path, silence=20.0)
    assert len(pids(tmp_path)) == 2
    assert not any(map(alive, pids(tmp_path)))


def test_what_cannot_be_pickled_is_told_at_once() -> None:
    with pytest.raises(RankError, match="cannot be sent to another process"):
        on_two_ranks(lambda rank: rank, silence=SILENCE)


@pytest.mark.slow
def test_ranks_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import pathlib, test_two_processes as t
t.on_two_ranks(t.hang, pathlib.Path({os.fspath(tmp_path)!r}), silence=600)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.fspath(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        deadline = time.monotonic() + 60
        while len(pids(tmp_path)) < 2 or not all(pids(tmp_path)):
            assert time.monotonic() < deadline, "the ranks did not start"
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(map(running, pids(tmp_path))):
        assert time.monotonic() < deadline, "the ranks outlived their parent"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """An orphan may stay a zombie until the system's first process looks after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
