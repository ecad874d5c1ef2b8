"""Cases that are to be compiled are, however many one process runs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from bench.cases import Case, Mode
from bench.operations import make

CASE = Case("tiny", "q", 16, 16, 4, 1, 8, Mode.STEP, compile=True)


def test_every_case_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for nth in range(torch._dynamo.config.recompile_limit + 2):
        operation = make(replace(CASE, in_features=16 + nth), "reference")
        before = counters["stats"]["unique_graphs"]
        operation.run(operation.setup())
        assert counters["stats"]["unique_graphs"] > before
    torch.compiler.reset()
