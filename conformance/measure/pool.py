"""Many independent jobs on all cores, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

J = TypeVar("J")
R = TypeVar("R")


def run_all(what: str, function: Callable[[J], R], jobs: Sequence[J], workers: int) -> list[R]:
    """Results in the order of the jobs. Each process computes with one thread."""
    with _one_thread_each(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(what, total=len(jobs))
            return list(_counted(pool.map(function, jobs), lambda: bar.advance(task)))


def _counted(results: Iterator[R], advance: Callable[[], None]) -> Iterator[R]:
    for result in results:
        advance()
        yield result


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
