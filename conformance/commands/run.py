"""``run``: pytest with worker processes, driven from here, and what it found."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from conformance.discovery import UsageError, check_name

INTERRUPTED = 130
_OWN_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # the workers share the cores
    "MKL_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # what else is installed has no say in a verdict
    "PYTEST_ADDOPTS": None,
    "PYTEST_PLUGINS": None,
}


@dataclass(frozen=True)
class Request:
    backends: list[str]
    out: Path
    profile: str
    seed: int
    models: list[str]
    workers: int
    timeout: float


def execute(asked: Request) -> int:
    """The exit status.

    Raises:
        UsageError: before anything is run.
    """
    _check(asked)
    trouble, status = _run_pytest(asked)
    if status == INTERRUPTED:
        print(f"interrupted: {asked.out / 'results.jsonl'} is incomplete", file=sys.stderr)  # noqa: T201
        return status
    return _report(asked.out, trouble)


def _check(asked: Request) -> None:
    from conformance.models import check_model

    for reference in asked.backends:
        check_name(reference)
    for model in asked.models:
        check_model(model)
    out = asked.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"--out {out} is not empty; results are never overwritten")
        (out / "log.txt").touch()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be used: {error.strerror}") from None


def _run_pytest(asked: Request) -> tuple[list[str], int]:
    """What broke the run off, if anything, and the status."""
    import pytest

    from conformance.commands.progress import Progress

    package = Path(__file__).parents[1]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lora-conformance-ini-")))
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        stack.enter_context(_environment())
        terminal = stack.enter_context(_stderr_to(asked.out / "log.txt"))
        progress = Progress(terminal, asked.workers)
        arguments = [
            *(package / "test_invariants.py", "-c", folder / "pytest.ini", "--rootdir", package.parent, "--noconftest"),
            *("-p", "xdist.plugin", "-p", "conformance.plugin", "--assert", "plain", "--capture", "no"),
            *(
                part
                for name in ("terminal", "cacheprovider", "warnings", "faulthandler")
                for part in ("-p", f"no:{name}")
            ),
            *("-n", asked.workers, "--dist", "load", "--maxschedchunk", 2, "--max-worker-restart", 10**6),
            *("--lora-profile", asked.profile, "--lora-seed", asked.seed, "--lora-timeout", asked.timeout),
            *("--lora-results", asked.out / "results.jsonl"),
            *(part for name in asked.backends for part in ("--lora-backend", name)),
            *(part for name in asked.models for part in ("--lora-model", name)),
        ]
        status = pytest.main([str(argument) for argument in arguments], plugins=[progress])
        progress.stop()
    return progress.trouble, INTERRUPTED if progress.interrupted else int(status)


def _report(out: Path, trouble: list[str]) -> int:
    from rich.console import Console

    from reports import markdown, matrix
    from reports.escape import inline
    from reports.results import IMPORT, ResultsError, read

    try:
        results = read(out / "results.jsonl")
    except ResultsError as error:
        why = "; ".join(inline(line) for line in trouble) or str(error)
        raise UsageError(f"the run broke off: {why} (see {out / 'log.txt'})") from None
    (out / "matrix.md").write_text(markdown.render([results]), encoding="utf-8")
    matrix.show([results], Console())
    lost = [record for record in results.records if record.invariant == IMPORT]
    for record in lost:
        line = f"lora-conformance: backend {record.backend!r} cannot be judged: {record.cause}"
        print(inline(line), file=sys.stderr)  # noqa: T201
    return 2 if lost else int(bool(results.red))


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _OWN_ENVIRONMENT}
    _set(_OWN_ENVIRONMENT)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _stderr_to(log: Path) -> Iterator[int]:
    """Workers inherit stderr: what they write goes to the log. Yields a descriptor of the real one."""
    sys.stderr.flush()
    real = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield real
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        os.close(real)
