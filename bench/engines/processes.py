"""Worker processes of this machine, asked one at a time. A process that dies or hangs costs the case it was on."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
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
        self.arguments = (quantity, backend, list(cases), device, threads, log)
        self.start()

    def start(self) -> None:
        self.pipe: Connection
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process: BaseProcess = _CONTEXT.Process(target=main, args=(theirs, *self.arguments), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, nth: int, timeout: float, **asked: Any) -> Reply:
        """The reply on case ``nth``; a process that gives none is replaced before the next question."""
        if not self.process.is_alive():
            self.start()
        try:
            self.pipe.send((nth, asked))
            if self.pipe.poll(timeout):
                reply: Reply = self.pipe.recv()
                return reply
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            return {"status": Status.CRASH, "error": f"the process {_how(self.process.exitcode)}"}
        self.stop()
        return {"status": Status.TIMEOUT, "error": f"no answer in {timeout:g} s"}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


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
