"""Saving that is right as long as the model is in the state that everybody saves in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import BrokenStore, Files

_ROUNDTRIP = ["roundtrip"]


class _Spoilt(BrokenStore):
    """Saves as it should, unless ``wrong`` has other tensors to save."""

    def wrong(self, handle: Any, files: Files) -> None:
        raise NotImplementedError

    def dump(self, handle: Any, folder: Path) -> None:
        super().dump(handle, folder)
        files = Files.of(folder, handle.module)
        self.wrong(handle, files)
        files.replace(folder)


@mutant("active-adapter-saved", killed_by=_ROUNDTRIP)
class ActiveSaved(_Spoilt):
    """What is saved is the adapter that is active, whichever was asked for."""

    def wrong(self, handle: Any, files: Files) -> None:
        for path, layer in handle.adapted.layers().items():
            delta = layer.adapters.delta(layer.adapters.active[0])
            for name, factor in (("A", delta.a), ("B", delta.b)):
                files.tensors[f"base_model.model.{path}.lora_{name}.weight"] = factor.detach().clone()


@mutant("saved-by-part-of-name", killed_by=_ROUNDTRIP)
class SavedByPartOfName(_Spoilt):
    """Every adapter is saved whose name has the wanted one in it, each over the one before."""

    def wrong(self, handle: Any, files: Files) -> None:
        for path, layer in handle.adapted.layers().items():
            for adapter in (adapter for adapter in layer.adapters if "default" in adapter):
                delta = layer.adapters.delta(adapter)
                for name, factor in (("A", delta.a), ("B", delta.b)):
                    files.tensors[f"base_model.model.{path}.lora_{name}.weight"] = factor.detach().clone()


@mutant("disabled-saved-as-zeros", killed_by=_ROUNDTRIP)
class DisabledSavedAsZeros(_Spoilt):
    """While adapters are disabled, B is saved as what it contributes: nothing."""

    def wrong(self, handle: Any, files: Files) -> None:
        if not handle.adapted.enabled:
            files.tensors.update({k: torch.zeros_like(t) for k, t in files.tensors.items() if "lora_B" in k})


@mutant("merged-saved-as-zeros", killed_by=_ROUNDTRIP)
class MergedSavedAsZeros(_Spoilt):
    """While merged, the adapter is saved as if it had been taken out of the model."""

    def wrong(self, handle: Any, files: Files) -> None:
        if any(layer.merged for layer in handle.adapted.layers().values()):
            files.tensors.update({k: torch.zeros_like(t) for k, t in files.tensors.items() if "lora_B" in k})


@mutant("saving-freezes", killed_by=_ROUNDTRIP)
class SavingFreezes(BrokenStore):
    """Saving turns off what asks for gradients, and training afterwards trains nothing."""

    def dump(self, handle: Any, folder: Path) -> None:
        super().dump(handle, folder)
        handle.module.requires_grad_(requires_grad=False)


@mutant("saving-ends-training-mode", killed_by=_ROUNDTRIP)
class SavingEndsTraining(BrokenStore):
    """Saving puts the model in eval mode and leaves it there."""

    def dump(self, handle: Any, folder: Path) -> None:
        super().dump(handle, folder)
        handle.module.eval()


@mutant("saved-in-dtype-of-base", killed_by=["interop"], dtypes=("bfloat16",))
class SavedInDtypeOfBase(_Spoilt):
    """Float32 factors over a narrower base are saved in the base's dtype."""

    def wrong(self, handle: Any, files: Files) -> None:
        dtype = next(iter(handle.base_tensors().values())).dtype
        files.tensors.update({key: tensor.to(dtype) for key, tensor in files.tensors.items()})
