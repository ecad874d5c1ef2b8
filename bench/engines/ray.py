"""Measure on a Ray cluster: one group of cases is one task, with a GPU or with all the cores that it times on.

Inside a task the work is that of ``bench.engines.local``, so the records are the same. Nothing is retried: a task that
is lost costs its own group, whose rows say so.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import environment
from bench.commands.progress import progress
from bench.engines.local import Effort, Group, running
from bench.figures import Row, Timed, rows
from bench.record import Status
from bench.unfinished import Unfinished
from bench.verdicts import Verdict
from conformance.discovery import UsageError


def measure_all(
    groups: Sequence[Group],
    judged: dict[str, Verdict],
    shared: Row,
    run: Unfinished,
    console: Console,
    *,
    effort: Effort,
    address: str | None,
) -> None:
    """Keep the rows of every group as its task ends.

    Raises:
        UsageError: Ray is not installed, or there is none at the address.
    """
    ray = _connected(address, shared["threads"])
    try:
        resources = {"num_gpus": 1} if shared["device"] == "cuda" else {"num_cpus": shared["threads"]}
        task = ray.remote(max_calls=1, max_retries=0, **resources)(_measure)
        pending = {task.remote(group, judged, shared, effort): group for group in groups}
        with progress(console) as bar:
            shown = bar.add_task("on Ray", total=len(pending))
            while pending:
                (ready,), _ = ray.wait(list(pending), num_returns=1)
                group = pending.pop(ready)
                run.keep(group, _result(ray, ready, group, judged, shared))
                bar.update(shown, advance=1, description=group.name)
    finally:
        ray.shutdown()


def _connected(address: str | None, threads: int) -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("--engine ray: Ray is not installed: pip install 'lora-conformance[ray]'") from None
    path = os.pathsep.join(
        filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))
    )  # a backend may be a file here
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    if address is None:
        options |= {"num_cpus": max(threads, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--address {address}: no Ray answers there ({' '.join(str(error).split())[:150]})") from None
    return ray


def _measure(group: Group, judged: dict[str, Verdict], shared: Row, effort: Effort) -> list[Row]:
    """In a task: the environment columns are those of the machine that measures."""
    device, threads = shared["device"], shared["threads"]
    here = {**shared, **environment.describe(device, threads)}
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        options = {"device": device, "threads": threads, "effort": effort, "log": Path(folder) / "log.txt"}
        with running(group.cases, judged, **options) as engine:
            return engine.measure(group, here)


def _result(ray: Any, ready: Any, group: Group, judged: dict[str, Verdict], shared: Row) -> list[Row]:
    try:
        found: list[Row] = ray.get(ready)
    except ray.exceptions.OutOfMemoryError as error:
        return lost(group, judged, shared, Status.OOM, error)
    except ray.exceptions.RayError as error:
        return lost(group, judged, shared, Status.CRASH, error)
    return found


def lost(group: Group, judged: dict[str, Verdict], shared: Row, status: Status, error: Exception) -> list[Row]:
    """One row for each case and backend of a group whose task died."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    timed = {backend: Timed(status, f"{type(error).__name__}: {first}"[:300]) for backend in judged}
    words = {
        b: {"verdict": v.word, "verdict_digest": v.digest, "backend_version": v.version} for b, v in judged.items()
    }
    found = [row for case in group.cases for row in rows(case, timed, {}, shared)]
    return [{**row, **shared, **words[row["backend"]]} for row in found]
