"""``nightly``: conformance, benchmarks, the history of all nights and a report, one after the other, into one folder.

No step is kept from running by what an earlier one found, and what a night measured is stored before it is judged: a
red night loses nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import store
from bench.commands import run
from bench.commands.summary import failures
from conformance.discovery import UsageError
from conformance.models import check_model
from reports.escape import markdown as escaped

SHOWN = 20  # failures in the summary; the rest is counted
Start = Callable[[list[str]], int]  # python -m with these arguments; the exit status


@dataclass(frozen=True)
class Request:
    backends: tuple[str, ...]
    models: tuple[str, ...] = ()
    profile: str = "cpu-quick"
    device: str = "cpu"
    only: tuple[str, ...] = ()
    engine: str = "local"
    address: str | None = None


@dataclass(frozen=True)
class Step:
    name: str
    outcome: str
    seconds: float
    red: bool


def _start(command: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode  # noqa: S603 - our own commands


def execute(asked: Request, out: Path, start: Start = _start) -> int:
    """Exit status 0, or 1 if a step found something red or broke off; all of them are run first.

    Raises:
        UsageError: before anything is run.
    """
    request = run.Request(asked.backends, asked.profile, asked.device, 1, asked.only)
    run.check(request, out, asked.engine, asked.address)
    for model in asked.models:
        check_model(model)
    night = Night(out, start)
    backends, at = _each("--backend", asked.backends), night.folder
    judge = ["conformance", "run", *backends, *_each("--model", asked.models), "--out", str(at / "conformance")]
    judged = night.step("conformance", judge, "conformance/matrix.md", good="nothing red", bad="something is red")
    measure = ["bench", "run", *backends, "--profile", asked.profile, *_each("--only", asked.only)]
    measure += ["--device", asked.device, "--engine", asked.engine, "--out", str(at / "runs")]
    measure += _each("--address", [asked.address] if asked.address else [])
    measure += ["--conformance", str(at / "conformance" / "results.jsonl")] if judged else []  # or else judged anew
    if night.step("benchmarks", measure, "runs/*.parquet", good="all measured", bad="not all could be measured"):
        compare = ["bench", "history", str(out), "--markdown", str(at / "history.md")]
        compare += ["--out", str(at / "history.json")]
        night.step("history", compare, "history.md", good="no regression", bad="a regression")
    if all(find_spec(name) for name in ("altair", "jinja2", "vl_convert")):
        report = ["reports", "build", str(at), "--out", str(at / "report")]
        night.step("report", report, "report/index.html", good="built", bad="not all could be read")
    else:
        night.steps.append(Step("report", "not built, for want of lora-conformance[reports]", 0.0, red=False))
    return night.end()


class Night:
    """The steps of one night, and its summary, which is there from the first step on. ``folder`` is new in ``out``."""

    def __init__(self, out: Path, start: Start) -> None:
        self.when, self.start, self.steps = datetime.now(UTC), start, list[Step]()
        self.folder = out / f"{self.when:%Y%m%dT%H%M%SZ}"
        try:
            self.folder.mkdir()
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be made: {error.strerror}") from None

    def step(self, name: str, command: list[str], leaves: str, *, good: str, bad: str) -> bool:
        """Run a step; whether it left what it is for, good or bad. Only then was it more than a command that broke."""
        Console(highlight=False).rule(f"{name}: {self.folder}", align="left", style="dim")
        began = time.monotonic()
        status = self.start(command)
        done = any(self.folder.glob(leaves))
        outcome = (bad if status else good) if done else f"broke off with status {status}"
        self.steps.append(Step(name, outcome, time.monotonic() - began, red=bool(status) or not done))
        self._write(" so far")
        return done

    def end(self) -> int:
        path = self._write()
        console = Console(highlight=False)
        console.rule(self._title(), align="left", style="dim")
        table = Table(box=None, show_header=False, pad_edge=False)
        for step in self.steps:
            table.add_row(step.name, step.outcome, _took(step), style="red" if step.red else "")
        console.print(table)
        console.print(f"wrote {path}")
        return int(self.red)

    @property
    def red(self) -> bool:
        return any(step.red for step in self.steps)

    def _title(self) -> str:
        return f"Night of {self.when:%Y-%m-%d %H:%M} UTC: {'red' if self.red else 'green'}"

    def _write(self, so_far: str = "") -> Path:
        """Markdown: the steps, what has no figure, the history, and the matrix folded away."""
        lines = [f"## {self._title()}{so_far}", "", "| step | outcome | took |", "| --- | --- | ---: |"]
        lines += [f"| {step.name} | {step.outcome} | {_took(step)} |" for step in self.steps]
        told = [line for path in store.files(self.folder / "runs") for line in failures(store.read(path).to_pylist())]
        lines += ["", *(f"- {escaped(line)}" for line in told[:SHOWN])] if told else []
        lines += [f"- … and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        history, matrix = self.folder / "history.md", self.folder / "conformance" / "matrix.md"
        if history.exists():
            lines += ["", history.read_text(encoding="utf-8").strip()]
        if matrix.exists():
            folded = ["<details>", "<summary>Conformance matrix</summary>", ""]
            lines += ["", *folded, matrix.read_text(encoding="utf-8").strip(), "", "</details>"]
        path = self.folder / "summary.md"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (option, value)]


def _took(step: Step) -> str:
    minutes, seconds = divmod(round(step.seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
