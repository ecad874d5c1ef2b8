"""Measure on a Ray cluster: one group of cases is one task, which has a GPU or a whole node to itself.

Inside a task the work is that of ``bench.engines.local``, so the records are the same. Nothing is retried: a task that
is lost costs its own group, whose rows say so.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import environment
from bench.commands.progress import progress, told
from bench.engines.local import Effort, Group, pairs, running
from bench.engines.processes import cores
from bench.figures import Row, Timed, rows
from bench.record import Status
from bench.unfinished import Unfinished
from bench.verdicts import WRONG, Verdict
from bench.worker import failure
from conformance.discovery import UsageError

_OBJECTS = 100 * 2**20  # bytes of the object store of a Ray that is started here: rows are all that it holds
_LEAVING = 20  # seconds that the processes of the task before may take to leave a GPU
_LOG = 2**16  # bytes at the end of a task's log that are kept
Outcome = tuple[list[Row], bytes]  # rows and log


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected to.

    share: the resources that one task takes.
    environment: the environment columns of one of the nodes that tasks run on.
    """

    ray: Any
    share: dict[str, float]
    environment: Row

    def measure_all(
        self,
        groups: Sequence[Group],
        judged: dict[str, Verdict],
        shared: Row,
        run: Unfinished,
        console: Console,
        effort: Effort,
    ) -> None:
        """Keep the rows of every group as its task ends."""
        task = _task(self.ray, self.share, _measure)
        pending = {task.remote(group, judged, shared, effort): group for group in groups}
        with progress(console) as bar, (run.folder / "log.txt").open("ab", buffering=0) as log:
            shown = bar.add_task("on Ray", total=len(pending))
            while pending:
                (ready,), _ = self.ray.wait(list(pending), num_returns=1)
                group = pending.pop(ready)
                found, said = self._outcome(ready, group, judged, shared)
                log.write(said)
                run.keep(group, found)
                told(console, len(groups) - len(pending), len(groups), group.name)
                bar.update(shown, advance=1, description=group.name)

    def _outcome(self, ready: Any, group: Group, judged: dict[str, Verdict], shared: Row) -> Outcome:
        errors = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(ready)
        except errors.RayTaskError as error:  # what was raised in the task
            reply = failure(error.cause)
        except errors.OutOfMemoryError as error:  # Ray itself ended it, before the node ran out of memory
            reply = {"status": Status.OOM, "error": _line(error)}
        except errors.RayError as error:
            reply = {"status": Status.CRASH, "error": _line(error)}
        else:
            return outcome
        return lost(group, judged, shared, **reply), b""


@contextmanager
def connected(address: str | None, device: str, threads: int, console: Console) -> Iterator[Cluster]:
    """The Ray at the address, or one that is started here and gone afterwards, whatever happened.

    Raises:
        UsageError: it refuses, or has no node for such tasks. Whether it is there: see ``bench.engines.address``.
    """
    import ray

    # A backend may be a file here; nodes keep a path of their own.
    path = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"), "${PYTHONPATH}")))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    if address is None:
        options |= {"num_cpus": max(threads, cores()), "include_dashboard": False, "object_store_memory": _OBJECTS}
        options["_system_config"] = {"worker_niceness": 0}  # by default Ray's own processes go before its tasks
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--engine ray: Ray cannot be used: {_line(error)}") from None
    try:
        share = _share(ray.nodes(), device, threads)
        try:
            with console.status("waiting for a node of Ray") if console.is_terminal else nullcontext():
                found = ray.get(_task(ray, share, environment.describe).remote(device, threads))
        except ray.exceptions.RayError as error:
            raise UsageError(f"--engine ray: a node cannot run lora-bench: {_line(error)}") from None
        yield Cluster(ray, share, found)
    finally:
        ray.shutdown()


def _share(nodes: Sequence[dict[str, Any]], device: str, threads: int) -> dict[str, float]:
    """A GPU; or all the cores of one of the largest nodes, since two tasks side by side would disturb each other.

    Raises:
        UsageError: no node has them.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if device == "cuda":
        if not any(resources.get("GPU", 0) >= 1 for resources in alive):
            raise UsageError("--device cuda: no node of this Ray has a GPU")
        return {"num_gpus": 1}
    most = max((resources.get("CPU", 0) for resources in alive), default=0)
    if most < threads:
        raise UsageError(f"--threads {threads}: the largest node of this Ray has {most:g} cores")
    return {"num_cpus": most}


def _task(ray: Any, share: dict[str, float], function: Callable[..., Any]) -> Any:
    """A function that runs once, in a process of its own."""
    return ray.remote(max_calls=1, max_retries=0, **share)(function)


def _measure(group: Group, judged: dict[str, Verdict], shared: Row, effort: Effort) -> Outcome:
    """In a task: the environment columns are those of the machine that measures."""
    device, threads = shared["device"], shared["threads"]
    if device == "cuda":
        refuse_busy_gpu()
    here = {**shared, "load": environment.load(), **environment.describe(device, threads)}
    with tempfile.TemporaryDirectory(prefix="lora-bench-") as folder:
        log = Path(folder) / "log.txt"
        log.touch()
        with running(group.cases, judged, device=device, threads=threads, effort=effort, log=log) as engine:
            return engine.measure(group, here), log.read_bytes()[-_LOG:]


def refuse_busy_gpu() -> None:
    """Wait a moment for the GPU to be free.

    Raises:
        RuntimeError: another process stays on it.
    """
    for _ in range(_LEAVING):
        if (busy := environment.busy_gpu()) is None:
            return
        time.sleep(1)
    raise RuntimeError(f"{busy}; times would mean nothing")


def lost(group: Group, judged: dict[str, Verdict], shared: Row, status: Status, error: str) -> list[Row]:
    """One row for each case and backend of a group whose task was lost."""
    found = []
    for case, backend in pairs(group, judged):
        verdict = judged[backend]
        ended = Timed(Status.WRONG, verdict.reason) if verdict.word == WRONG else Timed(status, error)
        found += [{**row, **shared, **verdict.as_row()} for row in rows(case, {backend: ended}, {}, shared)]
    return found


def _line(error: Exception) -> str:
    """The first line of what Ray says; of what was raised in a task, the exception."""
    error = getattr(error, "cause", None) or error
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]
