"""The side of a run that judges: a worker of pytest-xdist, or the only process."""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest

from conformance import results
from conformance.limit import AlarmLimit, Limit, OutOfTime, WorkerLimit
from conformance.plan import Broken, Plan, make
from conformance.record import Record, Verdict
from conformance.recording import PLAN, PROPERTY, models
from conformance.trial import Trial, reproduce, run

SESSION = pytest.StashKey["Session"]()


class Session:
    """Judges. ``folder`` is given in a worker only."""

    def __init__(self, config: pytest.Config, folder: Path | None, worker: str) -> None:
        self.config, self.folder, self.worker = config, folder, worker
        seconds: float = config.getoption("lora_timeout")
        self.limit: Limit = WorkerLimit(seconds, folder, worker) if folder else AlarmLimit(seconds)

    @cached_property
    def plan(self) -> Plan:
        """Made without the collector, which would walk a million imported objects time and again, at exit too."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return make(self.config.getoption("lora_backend"), models(self.config))
        finally:
            if collects:
                gc.enable()
            if self.folder is not None:  # a process of our own
                gc.freeze()

    def judge(self, item: Trial | Broken, node: pytest.Item) -> Record:
        record = item.record() if isinstance(item, Broken) else self._run(item)
        node.user_properties.append((PROPERTY, results.to_line(record)))
        return record

    def _run(self, trial: Trial) -> Record:
        profile, seed = self.config.getoption("lora_profile"), self.config.getoption("lora_seed")
        start = time.perf_counter()
        try:
            with self.limit.trial():
                return run(trial, profile=profile, seed=seed, watch=partial(self._watch, trial))
        except OutOfTime as error:
            now = self.limit.under_way()
            now.timed_out, now.stack = True, _innermost_first(error)
            seconds: float = self.config.getoption("lora_timeout")
            return results.unfinished(_about(trial), now, time.perf_counter() - start, seconds)
        except (KeyboardInterrupt, pytest.exit.Exception):
            raise
        except BaseException as error:  # noqa: BLE001 - a backend that exits or skips is an error, never an absence
            why = " ".join(f"{type(error).__name__}: {error}".split())
            trace = "".join(traceback.format_exception(error))
            text = f"{trial.invariant.id}: {trial.invariant.statement}\n  raised     {why}"
            return trial.record(Verdict.ERROR, failure=text, cause=why, traceback=trace)

    def _watch(self, trial: Trial, case: Any) -> None:
        self.limit.watch(case.described(), reproduce(trial, case))

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """In a worker: leave the plan for the writer, which imports no backend, before xdist tells that it is there."""
        if self.folder is not None:
            own = self.folder / f"{self.worker}.plan"
            own.write_text(json.dumps(self.describe(session)), encoding="utf-8")
            os.replace(own, self.folder / PLAN)  # noqa: PTH105 - says that it is atomic

    def pytest_unconfigure(self) -> None:
        if isinstance(self.limit, WorkerLimit):
            self.limit.close()

    def describe(self, session: pytest.Session) -> dict[str, Any]:
        """The plan for a process that imports no backend: the header's part, and the trials by pytest's ids."""
        items: dict[str, dict[str, str]] = {}
        for node in session.items:
            item = node.callspec.params.get("trial") if hasattr(node, "callspec") else None
            if isinstance(item, Trial | Broken):
                items[node.nodeid] = _about(item)
        return {**self.plan.header(), "items": items}


def _about(item: Trial | Broken) -> dict[str, str]:
    record = item.record() if isinstance(item, Broken) else item.record(Verdict.CRASH)
    statement = "" if isinstance(item, Broken) else item.invariant.statement
    names = ("backend", "version", "invariant", "family", "facet", "dtype", "on")
    return {**{name: str(getattr(record, name)) for name in names}, "statement": statement}


def _innermost_first(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[:-1]  # without the alarm's own
    lines = [f'  File "{frame.filename}", line {frame.lineno} in {frame.name}' for frame in reversed(frames)]
    return "\n".join(["Current thread (most recent call first):", *lines])
