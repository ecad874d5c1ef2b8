"""One process that measures one quantity of one backend: times, or memory and counts. It is asked case by case.

Times are pytest-benchmark's: a session of ``bench/test_time.py`` whose items are run when they are asked for, so that
backends in several processes can take turns.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import pytest

from bench.cases import Case
from bench.jobs import Job, parametrise
from bench.record import FROZEN, Status

Quantity = Literal["time", "memory"]
Reply = dict[str, Any]


def main(
    pipe: Connection,
    quantity: Quantity,
    backend: str,
    cases: Sequence[Case],
    device: str,
    threads: int,
    log: Path,
    scratch: str,
) -> None:
    """Answer requests until the other side closes or dies. What is printed goes to the log, other files to scratch."""
    tempfile.tempdir = scratch
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(threads)
    try:
        _times(pipe, backend, cases, device) if quantity == "time" else _memory(pipe, backend, cases, device)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # the run is over


def _end_with_parent() -> None:
    """Even in the midst of a case: nobody would read the answer, and a run that is taken up must not meet it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _memory(pipe: Connection, backend: str, cases: Sequence[Case], device: str) -> None:
    from bench.memory import measure

    while True:
        nth, _ = pipe.recv()
        try:
            reply = {"status": Status.OK, **measure(cases[nth], backend, device)}
        except Exception as error:  # noqa: BLE001 - the status says what a backend did
            reply = failure(error)
        pipe.send(reply)


def _times(pipe: Connection, backend: str, cases: Sequence[Case], device: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        ini = Path(folder) / "pytest.ini"
        ini.write_text("[pytest]\n", encoding="utf-8")
        tests = Path(__file__).with_name("test_time.py")
        arguments = [tests, "-c", ini, "--rootdir", folder, "--noconftest", "-p", "no:cacheprovider", "-q"]
        arguments += ["-p", "pytest_benchmark.plugin", "--benchmark-storage", f"file://{folder}", "--capture", "no"]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
            del os.environ[name]  # of a pytest that started this run: pytest-benchmark would switch itself off
        pytest.main([str(argument) for argument in arguments], plugins=[_OnDemand(pipe, backend, cases, device)])


class _OnDemand:
    """Runs the item that is asked for, and answers with its series or with what went wrong."""

    def __init__(self, pipe: Connection, backend: str, cases: Sequence[Case], device: str) -> None:
        self.pipe, self.backend, self.cases, self.device = pipe, backend, cases, device
        self.failed: Reply | None = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        parametrise(metafunc, self.cases, [self.backend], self.device)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        _settle(self.backend)
        while True:
            nth, asked = self.pipe.recv()
            item: Any = session.items[nth]
            job: Job = item.callspec.params["job"]
            job.samples, job.seconds, job.series, self.failed = asked["samples"], asked["seconds"], None, None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if job.series is not None and self.failed is None:
                self.pipe.send({"status": Status.OK, **vars(job.series), "timer": job.clock.name})
            else:
                self.pipe.send(self.failed or {"status": Status.CRASH, "error": "no series was taken"})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> None:  # noqa: ARG002
        if call.excinfo is not None and self.failed is None:
            self.failed = failure(call.excinfo.value)


def _settle(backend: str) -> None:
    """Import what will be timed, and spare the collector, which runs before each series, what imports leave."""
    from conformance.discovery import LoadError, load

    with suppress(LoadError):  # the first case will tell
        if backend != FROZEN:
            load(backend)
    gc.freeze()


def failure(error: BaseException) -> Reply:
    """The status that an exception stands for, and one line on it."""
    from bench.exactness import WrongError
    from bench.subject import UnsupportedError

    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    if isinstance(error, UnsupportedError | pytest.skip.Exception):
        return {"status": Status.UNSUPPORTED, "error": " ".join(str(error).split())}
    if isinstance(error, WrongError):
        return {"status": Status.WRONG, "error": str(error)}
    return {"status": Status.OOM if _out_of_memory(error) else Status.CRASH, "error": text}


def _out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "not enough memory")  # of torch's CPU allocator on Linux, and elsewhere
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
