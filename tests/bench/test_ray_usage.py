"""What a request that makes no sense says: one line and exit status 2. None of it needs a running Ray."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import cli
from bench.engines import address
from bench.engines import ray as engine
from conformance.discovery import UsageError

NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'lora-conformance[ray]'"
)


def asked(out: Path, *options: str, command: str = "run") -> tuple[int, str]:
    """Exit status and what is said, without the line on a busy machine."""
    found = CliRunner().invoke(cli.app, [command, "--backend", "reference", "--out", str(out), *options])
    said = [line for line in found.stderr.splitlines() if "is busy" not in line]
    assert list(out.iterdir()) == [], "nothing was begun"
    return found.exit_code, "\n".join(said)


@NEEDS_RAY
@pytest.mark.parametrize("command", ["run", "nightly"])
def test_no_ray_at_the_address(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    status, said = asked(tmp_path, "--engine", "ray", "--address", f"127.0.0.1:{port}", command=command)
    assert status == 2
    assert said.startswith(f"lora-bench: --address 127.0.0.1:{port}: nothing answers there (")
    assert "\n" not in said


@NEEDS_RAY
def test_something_else_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of Ray, it would be waited for until noon."""
    monkeypatch.setattr(address, "PATIENCE", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, said = asked(tmp_path, "--engine", "ray", "--address", f"127.0.0.1:{port}")
    assert status == 2
    assert said.startswith(f"lora-bench: --address 127.0.0.1:{port}: no Ray answers there (")
    assert "\n" not in said


@NEEDS_RAY
@pytest.mark.parametrize("wrong", ["6379", "head", "ray://head:port", ":6379"])
def test_no_address(wrong: str) -> None:
    with pytest.raises(UsageError, match="neither HOST:PORT nor auto"):
        address.check_ray(wrong)


@NEEDS_RAY
def test_none_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where one that runs here would have left its address
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    status, said = asked(tmp_path, "--engine", "ray", "--address", "auto")
    assert status == 2
    assert said.startswith("lora-bench: --address auto: no Ray answers there (")


def test_address_without_ray(tmp_path: Path) -> None:
    status, said = asked(tmp_path, "--address", "127.0.0.1:6379")
    assert (status, said) == (2, "lora-bench: --address is the address of a Ray: add --engine ray")


def test_ray_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    status, said = asked(tmp_path, "--engine", "ray")
    assert status == 2
    assert said == "lora-bench: --engine ray: Ray is not installed: pip install 'lora-conformance[ray]'"


class TestShareOfOneTask:
    NODES = (
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    )

    def test_all_cores_of_one_of_the_largest_nodes(self) -> None:
        assert engine._share(self.NODES, "cpu", 2) == {"num_cpus": 16.0}

    def test_one_gpu(self) -> None:
        assert engine._share(self.NODES, "cuda", 64) == {"num_gpus": 1}

    def test_no_node_is_large_enough(self) -> None:
        with pytest.raises(UsageError, match=r"--threads 32: the largest node of this Ray has 16 cores"):
            engine._share(self.NODES, "cpu", 32)

    def test_no_node_has_a_gpu(self) -> None:
        with pytest.raises(UsageError, match="no node of this Ray has a GPU"):
            engine._share(self.NODES[:1], "cuda", 1)


class TestBusyGpu:
    """The processes of the task before may still be leaving."""

    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine.time, "sleep", lambda _: None)

    def test_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = iter(["in use", "in use", None])
        monkeypatch.setattr(engine.environment, "busy_gpu", lambda: next(answers))
        engine.refuse_busy_gpu()
        assert list(answers) == []

    def test_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine.environment, "busy_gpu", lambda: "the GPU is in use by 1 other process(es)")
        with pytest.raises(RuntimeError, match="in use by 1 other"):
            engine.refuse_busy_gpu()
