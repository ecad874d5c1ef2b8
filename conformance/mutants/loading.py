"""Adapter files that are loaded beside others, and change what is active, enabled, merged or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import AfterLoad, BrokenStore, Load, all_adapters

_KILLED = ["added-adapter-isolation"]


@mutant("loaded-becomes-active", killed_by=_KILLED)
class BecomesActive(AfterLoad):
    """What is loaded becomes the active adapter."""

    def then(self, done: Load) -> None:
        done.handle.adapted.unmerge()
        done.handle.activate(done.adapter)


@mutant("loaded-joins-active", killed_by=_KILLED)
class JoinsActive(AfterLoad):
    """What is loaded is active beside those that were."""

    def then(self, done: Load) -> None:
        done.handle.activate(*done.active, done.adapter)


@mutant("load-reactivates-first", killed_by=_KILLED)
class ReactivatesFirst(AfterLoad):
    """A load makes the adapter called "default" active again."""

    def then(self, done: Load) -> None:
        done.handle.adapted.unmerge()
        done.handle.activate("default")


@mutant("load-enables", killed_by=_KILLED)
class Enables(AfterLoad):
    """A load switches disabled adapters on."""

    def then(self, done: Load) -> None:
        done.handle.adapted.enable()


@mutant("new-site-not-disabled", killed_by=_KILLED)
class NewSiteNotDisabled(BrokenStore):
    """A module that gets its first adapter while adapters are disabled is not."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        before = {id(adapters) for adapters in all_adapters(handle)}
        super().add(handle, folder, adapter)
        for adapters in all_adapters(handle):
            adapters.enabled |= id(adapters) not in before


@mutant("load-unmerges", killed_by=_KILLED)
class Unmerges(AfterLoad):
    """A load takes merged adapters out of the weights."""

    def then(self, done: Load) -> None:
        done.handle.adapted.unmerge()


@mutant("load-merges-into-merged", killed_by=_KILLED)
class MergesIntoMerged(AfterLoad):
    """Where adapters are merged, what is loaded is merged too."""

    def then(self, done: Load) -> None:
        for layer in done.handle.adapted.layers().values():
            if layer.merged and done.adapter in layer.adapters:
                layer.unmerge()
                layer.merged_weight = layer.effective_weight(*done.active, done.adapter).detach()
                layer.merged = done.active
                layer._stamp = layer._fingerprint()  # noqa: SLF001


@mutant("load-forgets-merge", killed_by=_KILLED)
class ForgetsMerge(AfterLoad):
    """A load leaves the merged weight in place and forgets that it is one: the delta is added once more."""

    def then(self, done: Load) -> None:
        for layer in done.handle.adapted.layers().values():
            if layer.merged_weight is not None:
                layer.base.weight.data = layer.merged_weight.clone()
                layer.unmerge()


@mutant("load-ends-training-mode", killed_by=_KILLED)
class EndsTrainingMode(AfterLoad):
    """A load puts the model into eval mode: the dropout of what is being trained is off from then on."""

    def then(self, done: Load) -> None:
        done.handle.module.eval()


@mutant("new-site-in-training-mode", killed_by=_KILLED, thread="huggingface/peft#3753")
class NewSiteInTraining(BrokenStore):
    """A module that gets its first adapter is in training mode, in a model that is in eval mode."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        before = set(handle.sites())
        super().add(handle, folder, adapter)
        for path in handle.sites().keys() - before:
            handle.sites()[path].train()


@mutant("load-freezes-others", killed_by=_KILLED)
class FreezesOthers(AfterLoad):
    """As what is loaded is not to be trained, nothing is from then on."""

    def then(self, done: Load) -> None:
        done.handle.module.requires_grad_(requires_grad=False)


@mutant("load-thaws-active", killed_by=_KILLED, thread="huggingface/peft#3580")
class ThawsActive(AfterLoad):
    """A load makes the active adapter trainable, also where it was loaded to be used only."""

    def then(self, done: Load) -> None:
        for adapters in all_adapters(done.handle):
            for name in adapters.active:
                adapters.delta(name).requires_grad_(requires_grad=True)
