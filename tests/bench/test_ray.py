"""A run on a real Ray gives the records of a local run, whatever dies on the way."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lora-conformance[ray]'")

import psutil  # noqa: E402
from rich.console import Console  # noqa: E402
from waiting import gone, when  # noqa: E402

from bench import environment, store  # noqa: E402
from bench.cases import Case, Mode  # noqa: E402
from bench.commands.run import _locally  # noqa: E402
from bench.engines import ray as engine  # noqa: E402
from bench.engines.local import Effort, Group, groups, running  # noqa: E402
from bench.figures import Row  # noqa: E402
from bench.record import FROZEN, KEY, SCHEMA_VERSION  # noqa: E402
from bench.unfinished import take_up  # noqa: E402
from bench.verdicts import CONFORMING, WRONG, Verdict  # noqa: E402

HERE = Path(__file__).parent
CASE = Case("tiny", "q", 48, 32, 4, 1, 64, Mode.STEP)
EFFORT = Effort(rounds=2, samples=3, seconds=0.1)
FLOOR = {FROZEN: Verdict("not judged")}
CONSOLE = Console(file=io.StringIO())
# Columns in which no two runs agree; of these, value is compared where it is deterministic.
MEASURED = {"value", "p20", "p80", "ci_low", "ci_high", "n", "warmup", "stopped", "samples", "rounds"}
MEASURED |= {"load", "clock_mhz", "peak_tflops", "peak_gbs"}
DRIVER = """
import sys
from pathlib import Path
from bench.engines import ray as engine
from bench.unfinished import take_up
from test_ray import CONSOLE, EFFORT, FLOOR, THREE, once, shared
engine._measure = once
with engine.connected(sys.argv[1], "cpu", 1, CONSOLE) as cluster, take_up(Path(sys.argv[2]), {}) as run:
    cluster.measure_all(THREE, FLOOR, shared(), run, CONSOLE, EFFORT)
"""


def of(*modules: str) -> list[Group]:
    return groups([replace(CASE, module=module) for module in modules])


THREE = of("q", "k", "v")


def planted(*names: str) -> dict[str, Verdict]:
    return {f"planted_backends:{name}_backend": Verdict(CONFORMING, "0", "d") for name in names}


def shared() -> Row:
    about = {"run_id": "run0", "timestamp": datetime(2026, 1, 1, tzinfo=UTC), "profile": "tiny"}
    return {"schema_version": SCHEMA_VERSION, **about, "device": "cpu", "threads": 1}


def once(group: Group, judged: dict[str, Verdict], about: Row, effort: Effort) -> engine.Outcome:
    """A task that gives rows which no other task gives, after a moment in which the command can be killed."""
    time.sleep(1)
    about = {**group.cases[0].as_row(), **about, "backend": FROZEN}
    return [{**about, "metric": name, "status": "ok", "value": time.time()} for name in ("flops", "n_ops")], b""


def on_ray(cluster: engine.Cluster, parts: list[Group], judged: dict[str, Verdict], out: Path) -> tuple[pa.Table, str]:
    """The run's table and its log."""
    with take_up(out, {}) as run:
        cluster.measure_all(parts, judged, shared(), run, CONSOLE, EFFORT)
        path = run.finish(parts, out)
    return store.read(path), path.with_suffix(".log").read_text()


def keyed(table: pa.Table) -> dict[tuple[Any, ...], Row]:
    rows = table.to_pylist()
    found = {tuple(row[name] for name in KEY): row for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[engine.Cluster]:
    """A Ray that is started here, and of which no process is left."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))))
        patch.syspath_prepend(str(HERE))
        with engine.connected(None, "cpu", 1, CONSOLE) as connection:
            yield connection
            started = set(psutil.Process().children(recursive=True)) - before
    tracker = resource_tracker._resource_tracker._pid  # of the processes that this one spawned; it ends with it
    of_ray = [process for process in started if process.pid != tracker]
    assert of_ray
    assert psutil.wait_procs(of_ray, timeout=30)[1] == []


def test_records_are_those_of_a_local_run(cluster: engine.Cluster, tmp_path: Path) -> None:
    parts = groups([CASE])
    judged = FLOOR | planted("right", "killed", "without_memory") | {"red": Verdict(WRONG, "1", "e", "red")}
    far, log = on_ray(cluster, parts, judged, tmp_path / "ray")
    with take_up(tmp_path / "local", {}) as run:
        _locally(EFFORT, judged, shared() | environment.describe("cpu", 1), parts, run, CONSOLE)
        near = store.read(run.finish(parts, tmp_path / "local"))
    assert far.schema.equals(near.schema, check_metadata=True)
    assert len(keyed(far)) == far.num_rows
    for there, here in zip(far.to_pylist(), near.to_pylist(), strict=True):
        measured = MEASURED - ({"value"} if here["kind"] == "deterministic" else set())
        assert {k: v for k, v in there.items() if k not in measured} == {
            k: v for k, v in here.items() if k not in measured
        }
        assert (there["value"] is None) == (here["value"] is None)
    status = {(row["backend"].partition(":")[2], row["status"], row["value"] is None) for row in far.to_pylist()}
    died = {("killed_backend", "crash"), ("without_memory_backend", "oom"), ("", "wrong")}
    assert {(name, word, True) for name, word in died} == {found for found in status if found[1] != "ok"}
    assert ("right_backend", "ok", False) in status
    assert log, "what the processes of a task print is brought back"


def test_task_that_dies_costs_its_own_group(
    cluster: engine.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    judged = FLOOR | planted("hanging") | {"red": Verdict(WRONG, "1", "e", "red in x")}

    def measure(group: Group, judged: dict[str, Verdict], about: Row, effort: Effort) -> engine.Outcome:
        name = group.cases[0].module
        if name == "exits":
            os._exit(3)
        if name == "forgets":
            raise MemoryError("no room here")
        if name == "killed":
            (notes / "task").write_text(str(os.getpid()))
            hanging = {backend: verdict for backend, verdict in judged.items() if "hanging" in backend}
            with running(group.cases, hanging, device="cpu", threads=1, effort=effort, log=notes / "log") as local:
                local.measure(group, about)
        return [{**group.cases[0].as_row(), **about, "backend": FROZEN, "metric": "flops", "value": 1.0}], b"said\n"

    def kill() -> None:
        """The task, in the midst of a backend's call."""
        when(lambda: (notes / "log").exists() and "hanging in" in (notes / "log").read_text())
        os.kill(int((notes / "task").read_text()), signal.SIGKILL)

    monkeypatch.setattr(engine, "_measure", measure)
    killer = threading.Thread(target=kill)
    killer.start()
    table, log = on_ray(cluster, of("exits", "forgets", "killed", "lives"), judged, tmp_path / "out")
    killer.join()
    for name, status, says in (
        ("exits", "crash", "WorkerCrashedError"),
        ("forgets", "oom", "MemoryError: no room here"),
        ("killed", "crash", "WorkerCrashedError"),
    ):
        found = [row for row in table.to_pylist() if row["module"] == name]
        by = {row["backend"]: row for row in found}
        assert list(by) == [row["backend"] for row in found] == list(judged)
        assert {(row["metric"], row["value"]) for row in found} == {("time_ms", None)}
        assert (by["red"]["status"], by["red"]["error"], by["red"]["verdict"]) == ("wrong", "red in x", "wrong")
        for backend in (FROZEN, *planted("hanging")):
            assert by[backend]["status"] == status
            assert says in by[backend]["error"]
    assert [row["value"] for row in table.to_pylist() if row["module"] == "lives"] == [1.0]
    assert log == "said\n"
    hanging = int((notes / "log").read_text().partition("hanging in ")[2].split()[0])
    when(lambda: gone(hanging))


def test_run_cut_off_is_taken_up_without_losing_or_doubling(
    cluster: engine.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is killed when it has kept its first group; the second is under way on Ray then."""
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, address, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    kept = when(lambda: list(tmp_path.glob(".unfinished/*/*.parquet")) or driver.poll() is not None)
    driver.kill()
    said = driver.communicate()[1]
    assert kept is not True, said
    first = keyed(store.read(kept[0]))
    monkeypatch.setattr(engine, "_measure", once)
    with take_up(tmp_path, {}) as run:
        left = [group for group in THREE if not run.done(group)]
        assert len(left) == 2
        cluster.measure_all(left, FLOOR, shared(), run, CONSOLE, EFFORT)
        found = keyed(store.read(run.finish(THREE, tmp_path)))
    assert {key: found[key] for key in first} == first
    cases = [group.cases[0].case_id for group in THREE]
    assert [key[:3] for key in found] == [(case, FROZEN, name) for case in cases for name in ("flops", "n_ops")]
    assert list(tmp_path.glob(".unfinished/*")) == []
