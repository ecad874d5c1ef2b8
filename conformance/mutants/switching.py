"""Whole models on which several adapters get in each other's way; each layer by itself is right."""

from __future__ import annotations

import torch
from torch import nn

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta
from lora_ref.layers import Adapters
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec

_ISOLATION = ["adapter-isolation"]


@mutant("switch-leaves-other-modules", killed_by=_ISOLATION)
class SwitchLeavesOthers(LoraModel):
    """Activating an adapter switches the modules that have it; the old one goes on at all others."""

    def activate(self, *names: str) -> None:
        self.check_known(*names)
        for each in self.adapters().values():
            if any(name in each for name in names):
                each.activate(*(name for name in names if name in each))


@mutant("disable-reaches-first-module", killed_by=_ISOLATION)
class DisableFirst(LoraModel):
    """Disabling the model disables the first adapted module."""

    def disable(self) -> None:
        next(iter(self.adapters().values())).enabled = False


@mutant("delete-forgets-last-module", killed_by=_ISOLATION)
class DeleteForgetsLast(LoraModel):
    """Deleting an adapter leaves it at the last module that has it, so that its name is never free again."""

    def delete(self, name: str) -> None:
        last = list(self.deltas(name))[-1]
        for path, each in self.adapters().items():
            if name in each and path != last:
                each.delete(name)


@mutant("second-adapter-only-where-first", killed_by=_ISOLATION)
class OnlyWhereFirst(LoraModel):
    """A second adapter is put only at modules that have one already, if there are such."""

    def plan(self, name: str, spec: LoraSpec, dtype: torch.dtype | None = None) -> dict[str, Delta]:
        planned, known = super().plan(name, spec, dtype), self.adapters()
        return {path: delta for path, delta in planned.items() if path in known} or planned


@mutant("second-starts-with-noise", killed_by=_ISOLATION, on=Facet.MODEL)
class SecondStartsWithNoise(Adapters):
    """Only the first adapter starts with B = 0."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        if len(self) > 1:
            nn.init.normal_(delta.b, std=0.02)
