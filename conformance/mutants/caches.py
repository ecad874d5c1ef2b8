"""Caches that outlive what they were computed from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call

from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import Adapters, LoraLayer

_KILLED = ["cache-fresh"]


@mutant("stale-by-name", killed_by=_KILLED, thread="vllm-project/vllm#30931, #42125, #48352, ggml-org/llama.cpp#26207")
class StaleByName(Adapters):
    """What an adapter adds to an input is remembered under its name, whatever its values have become."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:  # noqa: ARG002
        memory: dict[Any, Tensor] = self.__dict__.setdefault("memory", {})
        total = out
        for name in names:
            key = (name, tuple(x.shape), x.sum().item(), torch.is_grad_enabled())
            if key not in memory or x.requires_grad:
                memory[key] = self.delta(name)(x)
            total = total + memory[key]
        return total


@mutant("stale-by-shape", killed_by=_KILLED)
class StaleByShape(Delta):
    """The hidden state is remembered by the shape of the input."""

    def forward(self, x: Tensor) -> Tensor:
        memory: dict[Any, Tensor] = self.__dict__.setdefault("memory", {})
        if torch.is_grad_enabled():
            return super().forward(x)
        versions = (self.a._version, self.b._version, id(self.a), id(self.b), self.scaling)  # noqa: SLF001
        key = (tuple(x.shape), versions)
        if key not in memory:
            memory[key] = super().forward(x)
        return memory[key]


@mutant("stale-when-b-changes", killed_by=_KILLED)
class StaleWhenBChanges(Delta):
    """A cached product is valid as long as A has the same values; a change of B alone is not seen."""

    def forward(self, x: Tensor) -> Tensor:
        memory: dict[Any, Tensor] = self.__dict__.setdefault("memory", {})
        if torch.is_grad_enabled():
            return super().forward(x)
        key = (tuple(x.shape), x.to(torch.float64).pow(3).sum().item(), tuple(self.a.detach().flatten().tolist()),
               self.scaling)  # fmt: skip
        if key not in memory:
            memory[key] = super().forward(x)
        return memory[key]


@mutant("stale-after-load", killed_by=_KILLED, thread="huggingface/peft#3409")
class StaleAfterLoad(LinearDelta):
    """The first forward keeps A and B themselves: parameters that a loaded state puts in their place are not seen."""

    def _branch(self, x: Tensor) -> Tensor:
        a, b = self.__dict__.setdefault("live", (self.a, self.b))
        return torch.nn.functional.linear(torch.nn.functional.linear(x, a), b)


@mutant("stale-copy-in-place-write", killed_by=_KILLED)
class StaleCopy(LinearDelta):
    """The first forward without gradients copies A and B, and later ones compute with the copies."""

    def _branch(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super()._branch(x)
        a, b = self.__dict__.setdefault("copies", (self.a.detach().clone(), self.b.detach().clone()))
        return torch.nn.functional.linear(torch.nn.functional.linear(x, a), b)


@mutant("stale-merged-weight", killed_by=_KILLED)
class StaleMergedWeight(LoraLayer):
    """The first merged weight is kept, and used again by the next merge of the same adapters."""

    def effective_weight(self, *names: str) -> Tensor:
        memory: dict[Any, Tensor] = self.__dict__.setdefault("memory", {})
        key = names or self.adapters.applied()
        if key not in memory:
            memory[key] = super().effective_weight(*names).detach()
        return memory[key]


@mutant("stale-eval-weight", killed_by=_KILLED)
class StaleEvalWeight(LoraLayer):
    """Going from training to evaluation forms W + delta, and evaluation computes with that until training again."""

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - as in torch
        if self.training and not mode and self.adapters.applied():
            self.__dict__["kept"] = self.effective_weight().detach()
        elif mode:
            self.__dict__["kept"] = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.__dict__.get("kept")
        if kept is None or torch.is_grad_enabled() or not self.adapters.applied():
            return super().forward(x)
        out: Tensor = functional_call(self.base, {"weight": kept}, (x,))
        return out


@mutant("stale-gradient-input", killed_by=_KILLED)
class StaleGradientInput(LoraLayer):
    """Backward recomputes from the input of the first call of that shape."""

    def forward(self, x: Tensor) -> Tensor:
        memory: dict[Any, Tensor] = self.__dict__.setdefault("memory", {})
        out = super().forward(x)
        if not torch.is_grad_enabled():
            return out
        old = memory.setdefault(tuple(x.shape), x.detach().clone())
        stale = super().forward(old)
        own: Tensor = super().forward(x.detach()) if x.is_floating_point() else out
        return out.detach() + (stale - stale.detach()) + (out - own if x.is_floating_point() else 0 * out)
