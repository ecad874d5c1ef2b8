"""One series of samples by pytest-benchmark: the first call apart, warm-up, then calls that each start afresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.operations import Operation
from bench.timer import Clock

FEWEST = 2  # samples of a series, however long a call takes


@dataclass(frozen=True)
class Series:
    """Seconds, in the order taken. ``first`` is None where the operation has been called before.

    ``stopped`` says what ended the series: "samples" or "time".
    """

    seconds: list[float]
    first: float | None
    warmup: int
    stopped: str


def sample(benchmark: Any, operation: Operation, clock: Clock, *, samples: int, seconds: float) -> Series:
    """At most ``samples`` samples and about ``seconds``, but never fewer than two samples.

    ``benchmark`` is pytest-benchmark's fixture, whose timer is ``clock``.
    """

    def once() -> tuple[float, float]:
        """Seconds of one call, and of one call with its setup."""
        begin = clock()
        given = operation.setup()
        clock.flush()
        start = clock()
        operation.run(given)
        end = clock()
        return end - start, max(end - begin, end - start)

    first = None if operation.warm else once()[0]
    spent = [once()[1] for _ in range(1 if operation.warm else 2)]
    operation.warm = True
    fitting = int(seconds / max(min(spent), 1e-9))
    rounds = max(FEWEST, min(samples, fitting))

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        given = operation.setup()
        clock.flush()
        return (given,), {}

    benchmark.pedantic(operation.run, setup=setup, rounds=rounds, iterations=1)
    stopped = "samples" if rounds == samples else "time"
    return Series([float(s) for s in benchmark.stats.stats.data], first, len(spent), stopped)
