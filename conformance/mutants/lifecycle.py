"""Each operation is right by itself; two of them in a row are not."""

from __future__ import annotations

import torch
from torch import nn

from conformance.mutants.mutant import mutant
from lora_ref.delta import weight_of
from lora_ref.layers import LoraLayer


@mutant("switch-forgets-scale", killed_by=["any-order"], thread="huggingface/peft#3738")
class SwitchForgetsScale(LoraLayer):
    """Switching adapters puts every runtime scale back to 1."""

    def activate(self, *names: str) -> None:
        super().activate(*names)
        for name in self.adapters:
            self.adapters.set_scale(name, 1.0)


@mutant("unmerge-drops-scale", killed_by=["any-order"])
class UnmergeDropsScale(LoraLayer):
    """Unmerging puts the runtime scale of what was merged back to 1."""

    def unmerge(self) -> None:
        names = self.merged
        super().unmerge()
        for name in names:
            self.adapters.set_scale(name, 1.0)


@mutant("delete-switches-back", killed_by=["any-order"], thread="huggingface/peft#1930")
class DeleteSwitchesBack(LoraLayer):
    """Deleting an adapter that is not active makes the first one that is left active."""

    def delete(self, name: str) -> None:
        super().delete(name)
        self.adapters.activate(next(iter(self.adapters)))


@mutant("add-enables", killed_by=["any-order"])
class AddEnables(LoraLayer):
    """Adding an adapter to a disabled layer enables it."""

    def add(self, name: str, *arguments: object, **options: object) -> None:
        super().add(name, *arguments, **options)  # type: ignore[arg-type]
        self.adapters.enabled = True


@mutant("unmerge-without-merge-subtracts", killed_by=["any-order"])
class UnmergeSubtracts(LoraLayer):
    """Unmerging takes the deltas out of W whether they are in it or not."""

    def unmerge(self) -> None:
        if self.merged:
            super().unmerge()
            return
        with torch.no_grad():
            for name in self.adapters.applied():
                weight_of(self.base).sub_(self.adapters.delta(name).weight().to(weight_of(self.base).dtype))


@mutant("merge-enables", killed_by=["any-order"])
class MergeEnables(LoraLayer):
    """Merging while the adapters are disabled enables them."""

    def merge(self, *names: str) -> None:
        super().merge(*names)
        self.adapters.enabled = True


@mutant("enable-orphans-optimiser", killed_by=["any-order"])
class EnableOrphans(LoraLayer):
    """Enabling puts new parameters in the place of A and B, and an optimiser goes on with the old ones."""

    def enable(self) -> None:
        super().enable()
        for name in self.adapters:
            delta = self.adapters.delta(name)
            delta.a = nn.Parameter(delta.a.detach().clone(), requires_grad=delta.a.requires_grad)
            delta.b = nn.Parameter(delta.b.detach().clone(), requires_grad=delta.b.requires_grad)
