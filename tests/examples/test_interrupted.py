"""A run that is killed goes on from its last whole checkpoint, and ends as one that was never interrupted."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
from programs import digests, finished, metrics, start

RUNS = {  # options, where the checkpoints are, the one after which the run is killed, what half of one leaves
    "finetune_bert": (("--epochs", 12), "topics", "epoch-3", ".epoch-4.part/adapter"),
    "finetune_llama": (("--epochs", 8, "--every", 2), "chat", "checkpoint-4", "checkpoint-99"),
}


@pytest.mark.slow
@pytest.mark.parametrize("program", RUNS)
def test_killed_and_resumed(program: str, tmp_path: Path) -> None:
    options, task, last, half = RUNS[program]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    checkpoints = killed / task / "checkpoints"
    process = start(program, killed, "--tiny", *options)
    while not (checkpoints / last).exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (killed / "metrics.json").exists()
    assert not (killed / task / "adapter").exists()
    shutil.rmtree(checkpoints / half, ignore_errors=True)
    (checkpoints / half).mkdir(parents=True)

    assert "goes on" in finished(program, killed, "--tiny", *options)
    finished(program, whole, "--tiny", *options)
    kept, wanted = digests(killed), digests(whole)
    results = [name for name in wanted if name.endswith((".json", ".safetensors")) and name != "metrics.json"]
    assert len(results) > 10
    assert {name: kept.get(name) for name in results} == {name: wanted[name] for name in results}
    assert metrics(killed) == metrics(whole)
