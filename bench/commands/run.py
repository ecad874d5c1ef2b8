"""``run``: conformance first, then every case on every backend, into one Parquet file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench import environment
from bench.canonical import PROFILES
from bench.cases import Case
from bench.commands import summary
from bench.commands.progress import progress, told
from bench.engines.address import check_ray
from bench.engines.local import Effort, Group, groups, running
from bench.figures import Row
from bench.record import SCHEMA_VERSION
from bench.unfinished import Unfinished, take_up
from bench.verdicts import Verdict, judge, recorded, verdicts
from conformance.command_line import hint
from conformance.discovery import UsageError, check_name

if TYPE_CHECKING:
    from bench.engines.ray import Cluster


@dataclass(frozen=True)
class Request:
    backends: tuple[str, ...]
    profile: str
    device: str
    threads: int
    only: tuple[str, ...] = ()
    conformance: Path | None = None
    effort: Effort = field(default_factory=Effort)


def execute(asked: Request, out: Path, engine: str = "local", address: str | None = None) -> int:
    """Exit status 0, or 1 if any backend is wrong or a case crashed, timed out or ran out of memory.

    Raises:
        UsageError: before anything is measured.
    """
    console = Console(stderr=True)
    cases = check(asked, out, engine, address)
    load = environment.load()
    if address is None and (busy := environment.busy_cpu(load)):
        console.print(busy, style="yellow", soft_wrap=True)
    known = None if asked.conformance is None else recorded(asked.conformance, asked.backends)
    with _cluster(engine, address, asked, console) as cluster, take_up(out, _signature(asked, known)) as run:
        (run.folder / "log.txt").touch()
        judged = _judged(asked, run, console) if known is None else known
        for reference, verdict in judged.items():
            if verdict.reason:
                console.print(f"{reference} is not timed: {verdict.reason}", style="red", markup=False)
        todo = groups(cases)
        left = [group for group in todo if not run.done(group)]
        if len(left) < len(todo):
            console.print(f"taking up run {run.run_id}: {len(todo) - len(left)} of {len(todo)} groups are there")
        if cluster is not None:
            cluster.measure_all(left, judged, columns(run, asked, cluster.environment), run, console, asked.effort)
        else:
            here = {**environment.describe(asked.device, asked.threads), "load": load}
            _locally(asked.effort, judged, columns(run, asked, here), left, run, console)
        path = run.finish(todo, out)
    console.print(f"wrote {path}")
    return summary.show(path, Console())


def check(asked: Request, out: Path, engine: str = "local", address: str | None = None) -> list[Case]:
    """The cases, if all that was asked for is there.

    Raises:
        UsageError: an unknown name, a device that is missing or busy, a folder that cannot be written, no Ray.
    """
    cases = chosen(asked)
    for reference in asked.backends:
        check_name(reference)
    if engine == "ray":
        check_ray(address)
    elif address is not None:
        raise UsageError("--address is the address of a Ray: add --engine ray")
    if address is None:
        _check_device(asked.device)
    _check_folder(out)
    return cases


def chosen(asked: Request) -> list[Case]:
    """The cases of the profile that were asked for.

    Raises:
        UsageError: no profile, or no case, of that name; near names are shown.
    """
    if asked.profile not in PROFILES:
        raise UsageError(f"unknown profile {asked.profile!r}: {hint(asked.profile, PROFILES)}")
    cases = list(PROFILES[asked.profile]())
    for part in asked.only:
        if not any(part in case.case_id for case in cases):
            near = difflib.get_close_matches(part, [case.case_id for case in cases], n=3, cutoff=0.2)
            raise UsageError(f"no case of {asked.profile} has {part!r} in its id; nearest: {'; '.join(near) or 'none'}")
    return [case for case in cases if not asked.only or any(part in case.case_id for part in asked.only)]


def columns(run: Unfinished, asked: Request, where: Row) -> Row:
    """What all rows of a run share; ``where`` describes the machine that measures."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.run_id,
        "timestamp": datetime.fromisoformat(run.started),
        "profile": asked.profile,
        **environment.commit(),
        **where,
    }


def _cluster(
    engine: str, address: str | None, asked: Request, console: Console
) -> AbstractContextManager[Cluster | None]:
    """None for the processes of this machine."""
    if engine == "ray":
        from bench.engines.ray import connected

        return connected(address, asked.device, asked.threads, console)
    return nullcontext()


def _locally(
    effort: Effort, judged: dict[str, Verdict], shared: Row, left: Sequence[Group], run: Unfinished, console: Console
) -> None:
    cases = [case for group in left for case in group.cases]
    options = {"device": shared["device"], "threads": shared["threads"], "effort": effort}
    with running(cases, judged, **options, log=run.folder / "log.txt") as engine, progress(console) as bar:
        task = bar.add_task("measuring", total=sum(engine.answers(group) for group in left))
        done = 0
        for nth, group in enumerate(left, 1):
            told(console, nth, len(left), group.name)
            bar.update(task, description=group.name)
            run.keep(group, engine.measure(group, shared, lambda: bar.advance(task)))
            done += engine.answers(group)
            bar.update(task, completed=done)  # what failed early is done as well


def _judged(asked: Request, run: Unfinished, console: Console) -> dict[str, Verdict]:
    folder = run.folder / "conformance"
    if (folder / "results.jsonl").exists():
        return verdicts(folder / "results.jsonl", asked.backends)
    with console.status("judging the backends first") if console.is_terminal else console.capture():
        return judge(asked.backends, folder)


def _signature(asked: Request, known: dict[str, Verdict] | None) -> dict[str, Any]:
    """What must be equal for a run to be taken up: given verdicts by what they say, not by their file."""
    said = None if known is None else {reference: verdict.digest for reference, verdict in known.items()}
    return {**asdict(asked), "conformance": said, **environment.commit()}


def _check_device(device: str) -> None:
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; run with --device cpu")
    if busy := environment.busy_gpu():
        raise UsageError(f"--device cuda: {busy}; times would mean nothing")


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lora-bench").touch()
        (out / ".lora-bench").unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be used: {error.strerror}") from None
