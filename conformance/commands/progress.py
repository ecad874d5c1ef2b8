"""What is seen of a run while it runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from conformance.record import Record
from conformance.recording import RECORDER
from reports.escape import inline

_TENTHS = 10


class Progress:
    """A pytest plugin in the controller of the workers. ``descriptor`` is the terminal's."""

    def __init__(self, descriptor: int, workers: int) -> None:
        self.console = Console(file=os.fdopen(os.dup(descriptor), "w", encoding="utf-8"))
        self.trouble: list[str] = []
        self.interrupted = False
        self.total = self.done = self.red = 0
        self.bar: Bar | None = None
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(TextColumn("{task.description}"), *columns, console=self.console, transient=True)
            self.task = self.bar.add_task(f"starting {workers} workers", total=None)
            self.bar.start()

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
        self.console.file.close()

    @pytest.hookimpl(trylast=True, optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if self.total:
            return
        self.total = len(ids)
        if self.bar:
            self.bar.update(self.task, total=self.total, description=self._words())
        else:
            self.console.print(f"judging {self.total} trials")

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when not in {"call", "???"}:
            return
        self.done += 1
        record = self._record_of(report)
        if record is not None and record.verdict.red:
            self.red += 1
            place = "/".join(filter(None, (record.backend, record.invariant, record.facet, record.on, record.dtype)))
            why = record.cause or record.reason
            self.console.print(Text(inline(f"{record.verdict} {place}{why and ': '}{why}")), soft_wrap=True)
        if self.bar:
            self.bar.update(self.task, completed=self.done, description=self._words())
        elif self.done * _TENTHS // self.total > (self.done - 1) * _TENTHS // self.total:
            self.console.print(f"{self.done} of {self.total} judged, {self.red} red")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.trouble.append(_last_line(report.longreprtext))

    def pytest_internalerror(self, excrepr: object) -> None:
        self.trouble.append(_last_line(str(excrepr)))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, pytest.exit.Exception):
            self.trouble.append(excinfo.value.msg)
        else:
            self.interrupted = True

    def pytest_configure(self, config: pytest.Config) -> None:
        self.plugins = config.pluginmanager

    def _record_of(self, report: pytest.TestReport) -> Record | None:
        recorder: Any = self.plugins.get_plugin(RECORDER)
        record: Record | None = recorder.records.get(report.nodeid)
        return record

    def _words(self) -> str:
        return f"judging, {self.red} red" if self.red else "judging"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "for no known reason"
