"""The ways in which torch can run a module: eagerly, compiled, checkpointed, under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from conformance.contract import How


def run(module: nn.Module, x: torch.Tensor, how: How) -> torch.Tensor:
    """y = module(x), run as asked."""
    call: Any = module
    if how is How.COMPILED:
        call = torch.compile(
            module, backend="aot_eager"
        )  # traces and differentiates as every backend, needs no compiler
    if how is How.AUTOCAST:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(x)  # type: ignore[no-any-return]
    if how in {How.CHECKPOINTED, How.REENTRANT}:
        return checkpoint(call, x, use_reentrant=how is How.REENTRANT)  # type: ignore[no-any-return]
    return call(x)  # type: ignore[no-any-return]
