"""What one trial may cost: its time, and at worst its process. What was under way when it ended is kept.

A worker of pytest-xdist is ended by ``faulthandler``, whose watchdog needs no GIL, so that a kernel that never returns
costs one trial and not the run. Without workers an alarm interrupts the trial, which only Python code can feel.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Describe = Callable[[Any], str]
_TIMEOUT = "Timeout ("  # how faulthandler's dump begins when its limit has passed
_AGAIN = 1.0  # seconds after which the alarm is repeated, should a destructor have swallowed it


class OutOfTime(BaseException):
    """The trial's time is up. No Exception, so that nothing under test catches it."""


@dataclass
class UnderWay:
    """What is known of a trial that did not end: the case that was being judged, and where the code was."""

    case: dict[str, Any] = field(default_factory=dict)
    reproduce: str = ""
    stack: str = ""
    timed_out: bool = False


class Limit(Protocol):
    def trial(self) -> Any:
        """A context in which one trial runs."""

    def watch(self, case: dict[str, Any], reproduce: str) -> None: ...

    def under_way(self) -> UnderWay: ...


class AlarmLimit:
    """Without workers."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, UnderWay()

    @contextmanager
    def trial(self) -> Iterator[None]:
        self.now = UnderWay()
        if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def watch(self, case: dict[str, Any], reproduce: str) -> None:
        self.now = UnderWay(case, reproduce)

    def under_way(self) -> UnderWay:
        return self.now


class WorkerLimit:
    """In a worker: what is under way stands in files, which outlive the process."""

    def __init__(self, seconds: float, folder: Path, worker: str) -> None:
        self.seconds = seconds
        self.case = _case_file(folder, worker).open("w", encoding="utf-8")
        self.stack = _stack_file(folder, worker).open("w", encoding="utf-8")
        faulthandler.enable(self.stack)

    @contextmanager
    def trial(self) -> Iterator[None]:
        self._write({})
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.stack)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def watch(self, case: dict[str, Any], reproduce: str) -> None:
        self._write({"case": case, "reproduce": reproduce})

    def under_way(self) -> UnderWay:
        return UnderWay()

    def _write(self, what: dict[str, Any]) -> None:
        self.case.seek(0)
        self.case.truncate()
        json.dump(what, self.case)
        self.case.flush()

    def close(self) -> None:
        faulthandler.disable()
        self.case.close()
        self.stack.close()


def left_behind(folder: Path, worker: str) -> UnderWay:
    """What a worker that died was doing."""
    case, stack = _case_file(folder, worker), _stack_file(folder, worker)
    text = stack.read_text(encoding="utf-8", errors="replace") if stack.exists() else ""
    told = case.read_text(encoding="utf-8") if case.exists() else ""
    now = UnderWay(stack=text.replace(os.fspath(Path.cwd()) + os.sep, ""), timed_out=text.startswith(_TIMEOUT))
    try:
        what = json.loads(told)
    except ValueError:
        return now  # it died while it wrote
    now.case, now.reproduce = what.get("case", {}), what.get("reproduce", "")
    return now


def _case_file(folder: Path, worker: str) -> Path:
    return folder / f"{worker}.case"


def _stack_file(folder: Path, worker: str) -> Path:
    return folder / f"{worker}.stack"


def _raise(_signal: int, _frame: object) -> None:
    raise OutOfTime
