"""Run a function in two fresh processes that talk over gloo, and bring back what they return or why they did not.

Nothing outlives a call: processes that hang are killed, and they end by themselves when the one that started them dies.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

RANKS = 2
_GRACE = 2.0  # seconds that a rank gets to end once the other has failed
_ENV = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


class RankError(RuntimeError):
    """A rank raised, died or did not end in time; what it printed stands in the notes."""


def on_two_ranks(function: Callable[..., Any], *arguments: Any, silence: float) -> list[Any]:
    """[function(0, *arguments), function(1, *arguments)], each called in a process of its own within a gloo group.

    A function that prints nothing for ``silence`` seconds is taken to hang.

    Raises:
        RankError: one of them failed, or an argument cannot be pickled.
    """
    with tempfile.TemporaryDirectory(prefix="lora-ranks-") as name, ExitStack() as stack:
        folder = Path(name)
        try:
            task = pickle.dumps((function, arguments, silence))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise RankError(f"cannot be sent to another process: {error}") from error
        (folder / "task").write_bytes(task)
        ranks = [stack.enter_context(_Rank(folder, rank)) for rank in range(RANKS)]
        _await(ranks, silence)
        bad = [rank for rank in ranks if rank.process.poll() != 0]
        if bad:
            raise min(bad, key=_Rank.when_it_failed).failure(silence)
        return [pickle.loads(rank.result.read_bytes()) for rank in ranks]  # noqa: S301 - written by our own process


def _await(ranks: list[_Rank], silence: float) -> None:
    """Until all have ended, or one has failed and the others had their grace, or all are silent for too long."""
    started, failed = time.time(), 0.0
    while any(rank.process.poll() is None for rank in ranks):
        now = time.time()
        if any(rank.process.poll() for rank in ranks):
            failed = failed or now
        heard = max(started, *(rank.log.stat().st_mtime for rank in ranks))
        if now - heard > silence or (failed and now - failed > _GRACE):
            return
        time.sleep(0.01)


class _Rank:
    """One process. On exit it is killed, if need be, and waited for."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.rank, self.log = rank, folder / f"{rank}.log"
        self.result, self.error = folder / f"{rank}.result", folder / f"{rank}.error"
        command = [sys.executable, "-m", __name__, os.fspath(folder), str(rank)]
        env = {**os.environ, **_ENV, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env)  # noqa: S603

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def when_it_failed(self) -> tuple[bool, int]:
        """Sorts the culprit first: one that hangs, or complains later, has only lost the other."""
        return self.process.poll() is None, self.log.stat().st_mtime_ns

    def failure(self, silence: float) -> RankError:
        status, log = self.process.poll(), self.log.read_text(encoding="utf-8", errors="replace").strip()
        raised = self.error.read_text(encoding="utf-8") if self.error.exists() else ""
        how = f"was silent for {silence:g} s" if status is None else f"ended with exit status {status}"
        said = raised or "\n".join(log.splitlines()[-1:]) or "it printed nothing"
        error = RankError(f"rank {self.rank} {how}: {said}")
        error.add_note(log)
        return error


def _work(folder: Path, rank: int) -> None:
    import torch.distributed as dist

    function, arguments, silence = pickle.loads((folder / "task").read_bytes())  # noqa: S301 - from our own parent
    store = dist.FileStore(os.fspath(folder / "store"), RANKS)  # type: ignore[attr-defined]
    limit = timedelta(seconds=2 * silence)  # the launcher knows better, and sooner
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=limit)
    result = pickle.dumps(function(rank, *arguments))
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"{rank}.result").write_bytes(result)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent's end is closed, which its death does too
    os._exit(1)


def main() -> None:
    """A rank's own process; it leaves at once when it fails, as a group that lost a member cannot be shut down."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    try:
        _work(folder, rank)
    except BaseException as error:  # noqa: BLE001 - told to the parent
        traceback.print_exc()
        said = str(error).partition("\n")[0]
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {said}", encoding="utf-8")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
