"""The ways in which torch can run a module: eagerly, compiled, checkpointed, under autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from conformance.contract import How


class Compiled:
    """A module that is compiled as a user would, once, and how many graphs that has taken so far.

    The backend is "aot_eager", which traces and differentiates as every backend does, and needs no compiler. What
    was compiled before is forgotten, as torch stops compiling a function of which it has seen too many variants.
    """

    def __init__(self, module: nn.Module) -> None:
        torch.compiler.reset()
        self.graphs = 0
        self.call: Any = torch.compile(module, backend=self._counted)

    def _counted(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)  # noqa: SLF001 - documented for such backends


def run(module: Any, x: torch.Tensor, how: How) -> torch.Tensor:
    """y = module(x), run as asked; for How.COMPILED ``module`` is what ``Compiled`` gives to call."""
    if how is How.AUTOCAST:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)  # type: ignore[no-any-return]
    if how in {How.CHECKPOINTED, How.REENTRANT}:
        return checkpoint(module, x, use_reentrant=how is How.REENTRANT)  # type: ignore[no-any-return]
    return module(x)  # type: ignore[no-any-return]
