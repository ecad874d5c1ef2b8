"""A task that Ray itself ends, before its node runs out of memory."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lora-conformance[ray]'")

from rich.console import Console  # noqa: E402

from bench import store  # noqa: E402
from bench.cases import Case, Mode  # noqa: E402
from bench.engines import ray as engine  # noqa: E402
from bench.engines.local import Effort, groups  # noqa: E402
from bench.record import FROZEN  # noqa: E402
from bench.unfinished import take_up  # noqa: E402
from bench.verdicts import Verdict  # noqa: E402


@pytest.fixture
def full() -> Iterator[engine.Cluster]:
    """A Ray that holds its node to be full, so that it ends whatever runs."""
    config = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100}
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=1, object_store_memory=100 * 2**20, _system_config=config, **options)
    try:
        yield engine.Cluster(ray, {"num_cpus": 1}, {})
    finally:
        ray.shutdown()


def test_node_without_memory_is_no_crash(full: engine.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> None:
        time.sleep(600)

    monkeypatch.setattr(engine, "_measure", measure)
    parts = groups([Case("tiny", "q", 48, 32, 4, 1, 64, Mode.STEP)])
    with take_up(tmp_path, {}) as run:
        full.measure_all(parts, {FROZEN: Verdict("not judged")}, {}, run, Console(file=io.StringIO()), Effort())
        (row,) = store.read(run.finish(parts, tmp_path)).to_pylist()
    assert (row["backend"], row["metric"], row["status"], row["value"]) == (FROZEN, "time_ms", "oom", None)
    assert "OutOfMemoryError" in row["error"]
    assert "low on memory" in row["error"]
