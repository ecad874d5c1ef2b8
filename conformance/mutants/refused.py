"""Adapter files that do not fit, and leave something behind, or that are loaded in part under a name that is taken."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import BrokenStore
from conformance.peft_layout import CONFIG, read_adapter
from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec

_KILLED = ["load-atomic"]


@mutant("refused-load-leaves-name", killed_by=_KILLED)
class LeavesName(BrokenStore):
    """The adapter is put in with initial values before its tensors are read, and stays when these do not fit."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        try:
            super().add(handle, folder, adapter)
        except (LoraError, SafetensorError):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            targets = tuple(config["target_modules"])
            with suppress(LoraError):  # no such module, or the name is taken
                handle.add(adapter, LoraSpec(r=config["r"], alpha=config["lora_alpha"], targets=targets))
            raise


@mutant("refused-load-deactivates", killed_by=_KILLED)
class RefusedDeactivates(BrokenStore):
    """No adapter is active while a file is read; when it is refused, it stays like that."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        active = handle.adapted.active
        handle.activate()
        super().add(handle, folder, adapter)
        handle.activate(*active)


@mutant("refused-load-ends-eval-mode", killed_by=_KILLED)
class RefusedInTraining(BrokenStore):
    """A load puts the model into training mode and back; when the file is refused, it stays there."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        training = handle.module.training
        handle.module.train()
        super().add(handle, folder, adapter)
        handle.module.train(training)


@mutant("taken-name-emptied-first", killed_by=_KILLED)
class EmptiedFirst(BrokenStore):
    """A name that is taken is replaced: the old adapter is deleted before the file is read, which may be refused."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        if adapter in handle.adapted.names:
            handle.adapted.delete(adapter)
        super().add(handle, folder, adapter)


@mutant("taken-name-keeps-scaling", killed_by=_KILLED)
class KeepsScaling(BrokenStore):
    """A name that is taken gets the file's tensors and keeps its old scaling."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        taken = adapter in handle.adapted.names
        if not taken:
            super().add(handle, folder, adapter)
            return
        before = handle.adapted.spec(adapter).scaling
        super().add(handle, folder, "checked")
        handle.adapted.delete("checked")
        handle.adapted.delete(adapter)
        super().add(handle, folder, adapter)
        handle.activate(adapter)
        for delta in handle.adapted.deltas(adapter).values():
            delta.factor = before / delta.spec.scaling


@mutant("taken-name-in-part", killed_by=_KILLED)
class TakenInPart(BrokenStore):
    """Under a name that is taken the tensors that fit the old adapter's modules and ranks are written, no others."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        if adapter not in handle.adapted.names:
            super().add(handle, folder, adapter)
            return
        for path, (a, b) in read_adapter(folder).factors.items():
            delta = handle.adapted.deltas(adapter).get(path)
            if delta is not None and delta.a.shape == a.shape:
                delta.a.data.copy_(torch.from_numpy(a.copy()))
                delta.b.data.copy_(torch.from_numpy(b.copy()))


@mutant("further-load-not-strict", killed_by=_KILLED, thread="huggingface/peft#2118")
class NotStrict(BrokenStore):
    """The first file is read strictly; of a further one that does not fit nothing is loaded, without a word."""

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        with suppress(LoraError):
            super().add(handle, folder, adapter)
