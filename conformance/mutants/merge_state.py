"""While merged, something is done that the merged weight never hears of."""

from __future__ import annotations

from conformance.mutants.mutant import mutant
from lora_ref.delta import weight_of
from lora_ref.layers import LoraLayer

HONEST = ["merge-state-honest"]


@mutant("delete-merged-adapter", killed_by=HONEST, thread="huggingface/peft#3498")
class DeleteMerged(LoraLayer):
    """Deleting a merged adapter leaves its delta in the base for ever."""

    def delete(self, name: str) -> None:
        if name in self.merged and self.merged_weight is not None:
            weight_of(self.base).data.copy_(self.merged_weight)
            self.unmerge()
        super().delete(name)


@mutant("partial-merge-disables-rest", killed_by=HONEST, thread="huggingface/peft#3756")
class PartialMergeDisables(LoraLayer):
    """An adapter that is activated beside a merged one is silently not applied."""

    def activate(self, *names: str) -> None:
        super().activate(*([name for name in names if name in self.merged] or names))


@mutant("switch-while-merged-keeps-old", killed_by=HONEST)
class SwitchKeepsOld(LoraLayer):
    """Switching to another adapter adds it to a weight that still holds the merged one."""

    def activate(self, *names: str) -> None:
        self.adapters.activate(*names)


@mutant("disable-ignores-merged", killed_by=HONEST)
class DisableIgnoresMerged(LoraLayer):
    """Disabling switches the branches off; a merged delta stays in the output."""

    def disable(self) -> None:
        if not self.merged:
            super().disable()


@mutant("hotswap-while-merged", killed_by=HONEST, thread="huggingface/peft#3581")
class HotswapWhileMerged(LoraLayer):
    """New values for A and B change nothing while merged, and nobody says so."""

    def _fingerprint(self) -> tuple[object, ...]:
        return ()


@mutant("hotswap-then-unmerge", killed_by=HONEST, thread="huggingface/peft#3581")
class HotswapThenUnmerge(LoraLayer):
    """Unmerging subtracts what A and B give by then, not what was merged."""

    def unmerge(self) -> None:
        if self.merged_weight is not None:
            names = self.merged
            change = self.effective_weight(*names).detach() - weight_of(self.base).detach()
            weight_of(self.base).data.copy_(self.merged_weight - change)
        super().unmerge()


@mutant("rescale-while-merged-ignored", killed_by=HONEST)
class RescaleIgnored(LoraLayer):
    """A runtime scale that is set while merged is dropped without a word."""

    def set_scale(self, name: str, factor: float) -> None:
        if name not in self.merged:
            super().set_scale(name, factor)


@mutant("rescale-while-merged-writes-through", killed_by=HONEST)
class RescaleWritesThrough(LoraLayer):
    """A runtime scale that is set while merged multiplies the whole merged weight."""

    def set_scale(self, name: str, factor: float) -> None:
        if self.merged_weight is None:
            super().set_scale(name, factor)
        else:
            self.merged_weight = self.merged_weight * factor
