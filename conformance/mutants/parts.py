"""How a mutant is made: one class of the reference is replaced by a subclass of itself that gets one thing wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conformance.backends.hooks import HookedHandle
from conformance.backends.reference import ReferenceHandle, ReferenceLayer, ReferenceModel, ReferenceStore
from conformance.contract import ModelHandle, Weights
from conformance.peft_layout import CONFIG, WEIGHTS
from conformance.torch_layer import Root
from lora_ref.hooks import HookedModel
from lora_ref.layers import Adapters
from lora_ref.model import Adapted, LoraModel
from lora_ref.spec import LoraSpec

__all__ = [
    "AfterLoad",
    "BrokenLayer",
    "BrokenModel",
    "BrokenStore",
    "Files",
    "Load",
    "PartInModel",
    "ReferenceHandle",
    "ReferenceLayer",
    "ReferenceModel",
    "all_adapters",
    "break_parts",
    "gradient_only",
    "on_gradient",
]


def break_parts(root: nn.Module, broken: type[nn.Module]) -> None:
    """Each module of the class that ``broken`` extends becomes one that also is ``broken``, which comes first."""
    for module in root.modules():
        if isinstance(module, broken.__bases__[0]) and not isinstance(module, broken):
            module.__class__ = type(broken.__name__, (broken, type(module)), {})
            if "reset" in vars(broken):
                module.reset()  # type: ignore[operator]


class BrokenLayer(ReferenceLayer):
    """The reference's layer, with one of its parts broken: LoraLayer, Adapters, or a kind of Delta."""

    def __init__(self, part: type[nn.Module]) -> None:
        self.part = part

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        break_parts(root, self.part)

    def add(self, root: Root, adapter: str, spec: LoraSpec, dtype: torch.dtype) -> None:
        super().add(root, adapter, spec, dtype)
        break_parts(root, self.part)


class PartInModel(ReferenceModel):
    """The reference's model, with one part of each of its layers broken."""

    def __init__(self, part: type[nn.Module]) -> None:
        self.part = part

    def attach(self, module: nn.Module, spec: LoraSpec) -> ReferenceHandle:
        handle = super().attach(module, spec)
        break_parts(handle.module, self.part)
        return handle


class BrokenModel:
    """A broken LoraModel or HookedModel."""

    def __init__(self, kind: type[Adapted]) -> None:
        self.kind = kind

    def attach(self, module: nn.Module, spec: LoraSpec) -> ModelHandle:
        adapted = self.kind(module)
        adapted.add("default", spec, adapted.plan("default", spec), trainable=True)
        if isinstance(adapted, LoraModel):
            return _Handle(adapted)
        assert isinstance(adapted, HookedModel)
        return HookedHandle(adapted)


class _Handle(ReferenceHandle):
    def add(self, adapter: str, spec: LoraSpec) -> None:
        self.adapted.add(adapter, spec, self.adapted.plan(adapter, spec), trainable=True)


@dataclass
class Files:
    """What an adapter's files hold, and the model that they come from or go to."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    module: nn.Module

    @classmethod
    def of(cls, folder: Path, module: nn.Module) -> Files:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return cls(config, load_file(folder / WEIGHTS), module)

    def replace(self, folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(self.config), encoding="utf-8")
        whole = {key: tensor.contiguous() for key, tensor in self.tensors.items()}
        save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})


class BrokenStore(ReferenceStore):
    """Files that are changed after they were written, or before they are read."""

    def written(self, files: Files) -> None:
        """Spoil what was saved."""

    def read(self, files: Files) -> None:
        """Spoil what is about to be loaded."""

    def dump(self, handle: Any, folder: Path) -> None:
        super().dump(handle, folder)
        files = Files.of(folder, handle.module)
        self.written(files)
        files.replace(folder)

    def load(self, module: nn.Module, folder: Path) -> ReferenceHandle:
        files = Files.of(folder, module)
        self.read(files)
        with tempfile.TemporaryDirectory(prefix="lora-mutant-") as name:
            copy = Path(name) / "adapter"
            shutil.copytree(folder, copy)
            files.replace(copy)
            return super().load(module, copy)


@dataclass(frozen=True)
class Load:
    """A load beside others that has gone right so far; ``active`` were the active adapters before."""

    handle: Any
    adapter: str
    active: tuple[str, ...]


class AfterLoad(BrokenStore):
    """Loads beside others as it should, and then does one thing more."""

    def then(self, done: Load) -> None:
        raise NotImplementedError

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        active = handle.adapted.active
        super().add(handle, folder, adapter)
        self.then(Load(handle, adapter, active))


def all_adapters(handle: Any) -> list[Adapters]:
    """Those of each site."""
    return list(handle.adapted.adapters().values())


def on_gradient(value: Tensor, edit: Any) -> Tensor:
    """The same values; ``edit`` is applied to the gradient that returns through them."""
    seen = value.view_as(value)
    if seen.requires_grad:
        seen.register_hook(edit)  # type: ignore[no-untyped-call]
    return seen


def gradient_only(value: Tensor) -> Tensor:
    """Zero, with the gradient of ``value``."""
    return value - value.detach()
