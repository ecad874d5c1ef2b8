"""The frozen network of a case: a layer, the projections of attention, a feed-forward block, or a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.canonical import ARCHITECTURES
from bench.cases import Case
from conformance.models import checkpoint_activations

Inputs = dict[str, Any]


class Single(nn.Module):
    """One linear layer, under the name of its module: x (batch, seq, in) -> y (batch, seq, out)."""

    def __init__(self, module: str, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.add_module(module, nn.Linear(fan_in, fan_out, bias=False))
        self.only = module

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.only)(x)  # type: ignore[no-any-return]


class Qkv(nn.Module):
    """Three projections of one x (batch, seq, hidden); what they give is laid side by side: (batch, seq, h + 2 kv)."""

    def __init__(self, hidden: int, kv: int) -> None:
        super().__init__()
        self.q = nn.Linear(hidden, hidden, bias=False)
        self.k = nn.Linear(hidden, kv, bias=False)
        self.v = nn.Linear(hidden, kv, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


class Mlp(nn.Module):
    """SwiGLU as in Llama, down(silu(gate x) * up x), or GELU as in BERT, down(gelu(up x))."""

    def __init__(self, hidden: int, intermediate: int, *, gated: bool) -> None:
        super().__init__()
        if gated:
            self.gate = nn.Linear(hidden, intermediate, bias=False)
        self.up = nn.Linear(hidden, intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)  # (batch, seq, intermediate)
        h = nn.functional.silu(self.gate(x)) * up if self.gated else nn.functional.gelu(up)
        return self.down(h)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Net:
    """A frozen module, the names of what is adapted in it, and how to draw inputs and form a loss from outputs.

    ``loss`` is None for layers and groups, whose backward starts from a given dy of the shape of y.
    """

    module: nn.Module
    targets: tuple[str, ...]
    inputs: Callable[[int], Inputs]
    loss: Callable[[Any], Tensor] | None = None


def build(case: Case, device: str = "cpu") -> Net:
    """A fresh net; also under ``FakeTensorMode``, where nothing is allocated.

    Raises:
        UsageError: a model that is not known here, or is not installed.
    """
    return _whole(case, device) if case.whole else _part(case, device)


def _part(case: Case, device: str) -> Net:
    dtype = getattr(torch, case.base_dtype)
    with torch.device(device), default_dtype(dtype):
        if case.module == "qkv":
            at = ARCHITECTURES[case.model]
            module: nn.Module = Qkv(at.hidden, at.kv)
            targets: tuple[str, ...] = ("q", "k", "v")
        elif case.module == "mlp":
            at = ARCHITECTURES[case.model]
            module = Mlp(at.hidden, at.intermediate, gated=at.gated)
            targets = ("gate", "up", "down") if at.gated else ("up", "down")
        else:
            module, targets = Single(case.module, case.in_features, case.out_features), (case.module,)
    width = case.in_features

    def inputs(seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        x = torch.randn(case.batch, case.seq, width, generator=generator, device=device).to(dtype)
        return {"x": x.requires_grad_()}

    return Net(module.requires_grad_(requires_grad=False), targets, inputs)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New modules are made in this dtype; a module under ``FakeTensorMode`` cannot be cast afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _whole(case: Case, device: str) -> Net:
    from bench.models import load, targets_of

    module = load(case.model, case.base_dtype).to(device).requires_grad_(requires_grad=False)
    if case.grad_ckpt:
        checkpoint_activations(module, reentrant=False)
    causal = "CausalLM" in type(module).__name__

    def inputs(seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        ids = torch.randint(0, module.config.vocab_size, (case.batch, case.seq), generator=generator, device=device)
        return {"input_ids": ids, "labels": ids} if causal else {"input_ids": ids}

    def loss(outputs: Any) -> Tensor:
        """Of a causal model the mean cross-entropy; of an encoder the mean square of what it gives."""
        return outputs.loss if causal else outputs.last_hidden_state.float().pow(2).mean()  # type: ignore[no-any-return]

    return Net(module, targets_of(module), inputs, loss)
