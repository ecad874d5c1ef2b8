"""The side of a run that writes: one process, which hears of trials through reports and imports no backend."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from conformance import limit, results
from conformance.limit import UnderWay
from conformance.record import Record, Verdict

PROPERTY = "lora_conformance"  # carries a record in a report, from the worker to the writer
FOLDER = "lora_conformance_folder"  # where a worker leaves what must outlive it
PLAN = "plan.json"
JUDGE = "lora-conformance-judge"
RECORDER = "lora-conformance-recorder"


class Recorder:
    """Writes. Under pytest-xdist it runs in the controller and hears of trials through reports alone."""

    def __init__(self, config: pytest.Config, path: Path | None) -> None:
        self.config = config
        self.writer = results.Writer(path) if path else None
        self.scratch = tempfile.TemporaryDirectory(prefix="lora-conformance-")
        self.folder = Path(self.scratch.name)
        self.trials: dict[str, dict[str, str]] = {}  # by pytest's id
        self.started: dict[str, float] = {}
        self.records: dict[str, Record] = {}
        self.stillborn = 0

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[FOLDER] = str(self.folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        node.lora_collected = bool(ids)
        if not self.trials:
            self._begin(json.loads((self.folder / PLAN).read_text(encoding="utf-8")))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without workers."""
        judge: Any = self.config.pluginmanager.get_plugin(JUDGE)
        if judge is not None:
            self._begin(judge.describe(session))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker that dies before it knows its trials was killed by an import: another would die too."""
        if error and not hasattr(node, "lora_collected"):
            self.stillborn += 1
            names = ", ".join(self.config.getoption("lora_backend"))
            raise pytest.exit.Exception(
                f"a worker died while it imported {names}: name fewer backends to find which", 3
            )

    def _begin(self, plan: dict[str, Any]) -> None:
        self.trials = plan.pop("items")
        option = self.config.getoption
        if self.writer:
            asked = {"profile": option("lora_profile"), "seed": option("lora_seed"), "models": models(self.config)}
            self.writer.header(**plan, **asked, trials=len(self.trials), **results.environment())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.started[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The call's report carries the record; a worker that died reports ``???`` and carries none."""
        nodeid = report.nodeid
        if nodeid not in self.trials or nodeid in self.records or (report.when != "call" and not report.failed):
            return
        record = self._record(report)
        self.records[nodeid] = record
        if self.writer:
            self.writer.record(record)

    def _record(self, report: pytest.TestReport) -> Record:
        for name, value in report.user_properties:
            if name == PROPERTY:
                return results.from_line(str(value))
        about = self.trials[report.nodeid]
        if report.when in {"setup", "call", "teardown"}:
            named = {k: v for k, v in about.items() if k != "statement"}
            text = {
                "failure": report.longreprtext,
                "traceback": report.longreprtext,
                "cause": "the trial could not run",
            }
            return Record(**named, verdict=Verdict.ERROR, **text)  # type: ignore[arg-type]
        node: Any = getattr(report, "node", None)
        now = limit.left_behind(self.folder, node.gateway.id) if node else UnderWay()
        seconds = time.monotonic() - self.started.get(report.nodeid, time.monotonic())
        record = results.unfinished(about, now, seconds, self.config.getoption("lora_timeout"))
        report.longrepr = record.failure
        return record

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """No footer after an interruption: what was not judged must not look as if it had been."""
        if self.writer:
            if int(exitstatus) in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED} and self.trials:
                self.writer.footer(int(exitstatus))
            self.writer.close()

    def pytest_unconfigure(self) -> None:
        self.scratch.cleanup()


def models(config: pytest.Config) -> list[str]:
    from conformance.models import DEFAULT_MODELS

    return [*DEFAULT_MODELS, *config.getoption("lora_model")]
