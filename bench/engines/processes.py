"""Worker processes of this machine, asked one at a time. A process that dies or hangs costs the case it was on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.cases import Case
from bench.record import Status
from bench.worker import Quantity, Reply, main

_CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """One backend and one quantity. It is started at once, so that several can import side by side."""

    def __init__(
        self, quantity: Quantity, backend: str, cases: Sequence[Case], device: str, threads: int, log: Path
    ) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="lora-bench-")  # the process is killed and cannot tidy up
        self.arguments = (quantity, backend, list(cases), device, threads, log, self.scratch.name)
        self.start()

    def start(self) -> None:
        self.pipe: Connection
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=main, args=(theirs, *self.arguments), daemon=True)
        with _prepared():
            self.process.start()
        theirs.close()

    def ask(self, nth: int, timeout: float, **asked: Any) -> Reply:
        """The reply on case ``nth``; a process that gives none is replaced before the next question."""
        if not self.process.is_alive():
            self.start()
        kills = oom_kills()
        try:
            self.pipe.send((nth, asked))
            if self.pipe.poll(timeout):
                reply: Reply = self.pipe.recv()
                return reply
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            if self.process.exitcode == -signal.SIGKILL and oom_kills() > kills:
                return {"status": Status.OOM, "error": "the kernel killed the process for want of memory"}
            return {"status": Status.CRASH, "error": f"the process {_how(self.process.exitcode)}"}
        self._kill()
        return {"status": Status.TIMEOUT, "error": f"no answer in {timeout:g} s"}

    def stop(self) -> None:
        self._kill()
        self.scratch.cleanup()

    def _kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _prepared() -> Iterator[None]:
    """A spawned process imports its parent's main module. Ray's would add to the memory that is measured.

    What goes through a set of names goes in the same order in every run: a backend's peak may depend on it.
    """
    main, hashed = sys.modules["__main__"], os.environ.get("PYTHONHASHSEED")
    sys.modules["__main__"], os.environ["PYTHONHASHSEED"] = ModuleType("__main__"), "0"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if hashed is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = hashed


def oom_kills() -> int:
    """Processes that the kernel killed for want of memory, since it started; 0 where it does not tell (proc(5))."""
    counts = Path("/proc/vmstat")
    lines = counts.read_text(encoding="ascii").splitlines() if counts.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"died of {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")
    return f"ended with status {code}"


def cores() -> int:
    """Of this process, where the system can say."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
