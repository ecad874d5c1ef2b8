"""What a failure says, to the letter, and that its command shows it again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from typer.testing import CliRunner

import conformance.invariants
from conformance.cli import app
from conformance.contract import Backend, Facet
from conformance.invariant import REGISTRY
from conformance.record import Record, Verdict
from conformance.torch_operator import torch_operator
from conformance.trial import Trial, run

assert conformance.invariants
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def unscaled(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, _s: float
) -> torch.Tensor:
    return F.linear(x, w, bias) + F.linear(F.linear(x, a), b)


def raising(*_: object) -> torch.Tensor:
    raise RuntimeError("no kernel\nfor this shape")


broken = torch_operator(unscaled, name="my-lora")
refusing = torch_operator(raising, name="refusing")


def judged(backend: Backend, reference: str, invariant: str) -> Record:
    return run(Trial(REGISTRY[invariant], backend, reference, Facet.OPERATOR, "float32"), profile="full", seed=0)


def test_the_message_of_the_readme_is_the_message() -> None:
    record = judged(broken, "my_lora:backend", "forward-oracle")
    (shown,) = re.findall(r"<!-- failure -->\n```\n(.*?)\n```", README, re.DOTALL)
    said = re.sub(r"--case '.*'", "--case '{...}'", record.failure)
    assert said == shown


def test_a_backend_that_raises() -> None:
    record = judged(refusing, "x:y", "forward-oracle")
    assert record.verdict is Verdict.ERROR
    assert "  raised     RuntimeError: no kernel for this shape" in record.failure.splitlines()
    assert "no kernel" in record.traceback


def test_the_printed_command_reproduces_the_failure() -> None:
    record = judged(broken, f"{__name__}:broken", "forward-oracle")
    command = shlex.split(record.failure.splitlines()[-1].removeprefix("  reproduce  "))
    assert command[0] == "lora-conformance"
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 1
    assert "no scaling at all (s = 1)" in result.output


def test_the_example_of_the_readme_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_lora.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import my_lora  # type: ignore[import-not-found]

    for invariant in REGISTRY.values():
        if Facet.OPERATOR in invariant.checks:
            for dtype in ("float32", "bfloat16"):
                trial = Trial(invariant, my_lora.backend, "my_lora:backend", Facet.OPERATOR, dtype)
                assert run(trial, profile="quick", seed=0).verdict in {Verdict.PASS, Verdict.UNSUPPORTED}
