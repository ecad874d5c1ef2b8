"""How the tests call the fine-tuning programs: in this process, or in one of their own that can be killed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = ("finetune_bert", "finetune_llama")


def call(program: str, out: Path, *options: object) -> Result:
    """In this process."""
    return CliRunner().invoke(import_module(program).app, ["--out", str(out), *map(str, options)])


def start(program: str, out: Path, *options: object) -> subprocess.Popen[str]:
    """In a process of its own, on one thread of the CPU, so that what it computes can be compared bit for bit."""
    command = [sys.executable, str(EXAMPLES / f"{program}.py"), "--out", str(out), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(program: str, out: Path, *options: object) -> str:
    process = start(program, out, *options)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return found


def digests(folder: Path) -> dict[str, str]:
    """All files below, by what they hold."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
