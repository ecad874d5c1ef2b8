"""Adapter files that are loaded beside others, and are not what they say then, or change the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import AfterLoad, BrokenStore, Load, all_adapters
from lora_ref.model import LoraModel

_KILLED = ["added-adapter-isolation"]


@mutant("adapters-creep-back", killed_by=_KILLED, thread="huggingface/peft#1639", dtypes=("bfloat16",))
class CreepBack(AfterLoad):
    """A load moves all adapters to the device and the dtype of the base, not only its own."""

    def then(self, done: Load) -> None:
        for layer in done.handle.adapted.layers().values():
            layer.adapters.to(layer.base.weight.device, layer.base.weight.dtype)


@mutant("load-replaces-parameters", killed_by=_KILLED, thread="huggingface/peft#3409")
class ReplacesParameters(AfterLoad):
    """A load builds all adapters anew with the values that they had: an optimiser steps what is used no more."""

    def then(self, done: Load) -> None:
        for adapters in all_adapters(done.handle):
            for name in adapters:
                delta = adapters.delta(name)
                for factor in ("a", "b"):
                    old = getattr(delta, factor)
                    setattr(delta, factor, nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad))


@mutant("load-writes-over-first", killed_by=_KILLED)
class WritesOverFirst(AfterLoad):
    """The tensors go to the first adapter too, as far as its rank goes, as their names in the file name no adapter."""

    def then(self, done: Load) -> None:
        for adapters in all_adapters(done.handle):
            if done.adapter in adapters and "default" in adapters:
                new, old = adapters.delta(done.adapter), adapters.delta("default")
                rank = min(len(new.a), len(old.a))
                old.a.data[:rank] = new.a[:rank]
                old.b.data[:, :rank] = new.b[:, :rank]


@mutant("load-buffer-reused", killed_by=_KILLED)
class BufferReused(BrokenStore):
    """Files are read into one buffer for each module: the next adapter there lies in the memory of the last one."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        super().add(handle, folder, adapter)
        for adapters in all_adapters(handle):
            if adapter in adapters:
                for name, factor in adapters.delta(adapter).named_parameters():
                    buffer = adapters.__dict__.setdefault(f"buffer_{name}", torch.empty(1024, dtype=factor.dtype))
                    factor.data = buffer[: factor.numel()].view(factor.shape).copy_(factor.detach())


@mutant("third-load-evicts", killed_by=_KILLED)
class Evicts(AfterLoad):
    """There is room for three adapters: the next one takes the place of the oldest that is not active."""

    def then(self, done: Load) -> None:
        if len(done.handle.adapted.names) > 3:
            done.handle.adapted.unmerge()
            done.handle.adapted.delete(
                next(name for name in done.handle.adapted.names if name not in {*done.active, done.adapter})
            )


@mutant("loaded-with-scaling-of-first", killed_by=_KILLED)
class ScalingOfFirst(AfterLoad):
    """What is loaded is scaled by the alpha and r of the first adapter, whose config is taken for that of all."""

    def then(self, done: Load) -> None:
        first = done.handle.adapted.spec("default").scaling
        for delta in done.handle.adapted.deltas(done.adapter).values():
            delta.factor = first / delta.spec.scaling


@mutant("loaded-without-patterns", killed_by=_KILLED)
class WithoutPatterns(AfterLoad):
    """The alpha pattern of a further file is not read."""

    def then(self, done: Load) -> None:
        alpha = done.handle.adapted.spec(done.adapter).alpha
        for delta in done.handle.adapted.deltas(done.adapter).values():
            delta.factor = alpha / delta.spec.alpha


@mutant("loaded-at-known-sites-only", killed_by=_KILLED)
class KnownSitesOnly(BrokenStore):
    """Tensors for a module that no adapter has been at are dropped."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        before = set(handle.sites())
        super().add(handle, folder, adapter)
        layers = handle.adapted.layers()
        handle.adapted._replace({layers[path]: layers[path].base for path in layers.keys() - before})


@mutant("deleted-name-remembered", killed_by=_KILLED, thread="vllm-project/vllm#30931, #42125")
class DeletedNameRemembered(BrokenStore):
    """What was loaded is kept by name: another file under the name of a deleted adapter gives that one's values."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        seen: dict[str, Path] = handle.__dict__.setdefault("seen_by_name", {})
        super().add(handle, seen.setdefault(adapter, folder), adapter)


@mutant("delete-takes-loaded", killed_by=_KILLED)
class DeleteTakesLoaded(AfterLoad):
    """Files that are loaded form one set: deleting one adapter empties all that came from files after the first."""

    def then(self, done: Load) -> None:
        adapted = done.handle.adapted
        loaded = {name for name in adapted.names if name != "default"}

        def delete(gone: str) -> None:
            LoraModel.delete(adapted, gone)
            for name in loaded - {gone}:
                for delta in adapted.deltas(name).values():
                    delta.b.data.zero_()

        adapted.delete = delete
