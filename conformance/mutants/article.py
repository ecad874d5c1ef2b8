"""A well-read article's adapter, its two ways of attaching it and its way of saving it: one defect each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conformance.contract import Feature, Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import BrokenStore, ReferenceHandle, ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import Delta, LinearDelta, weight_of
from lora_ref.hooks import HookedModel, add_deltas
from lora_ref.layers import Adapters
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec

OFFERED = frozenset({Feature.BIAS, Feature.INIT, Feature.TRAIN_STEP, Feature.PEFT_LAYOUT})  # the rest is not claimed


@mutant("article-both-default-init", killed_by=["identity-at-init", "init-asymmetry"], features=OFFERED)
class BothDefaultInit(Delta):
    """A and B both start as nn.Linear's weights do, so that a fresh adapter already changes the output."""

    def reset(self) -> None:
        super().reset()
        nn.init.kaiming_uniform_(self.b, a=5**0.5)


@mutant("article-no-scaling", killed_by=["scaling-law"], features=OFFERED)
class NoScaling(Delta):
    """There is no alpha/r: the strength of the delta changes with the rank."""

    @property
    def scaling(self) -> float:
        return self.factor


@mutant("article-square-only", killed_by=["shape-general", "forward-oracle"], features=OFFERED)
class SquareOnly(ReferenceLayer):
    """B leads back to the input's size, so only layers with as many outputs as inputs can be adapted."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        for delta in root.modules():
            if isinstance(delta, LinearDelta):
                delta.b = nn.Parameter(delta.a.new_zeros(delta.a.shape[::-1]))


@mutant("article-base-not-frozen", killed_by=["base-frozen"], features=OFFERED)
class BaseNotFrozen(ReferenceLayer):
    """The base keeps asking for gradients and is trained along."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        weight_of(root.layer.base).requires_grad = True


def look_on_itself(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
    """The article's hook: what it looks for is an attribute of the parent."""
    return add_deltas(module, args, kwargs, out) if hasattr(module, "q_proj_lora") else out


@mutant(
    "article-hook-wrong-module",
    killed_by=["hook-binding", "target-exact", "forward-oracle", "grad-oracle"],
    features=OFFERED,
)
class HookOnWrongModule(HookedModel):
    """The hook looks for the adapter on its own module, while it hangs on the parent: the delta is never added."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        adapters = super().carry(paths)
        for module in self.hooked().values():
            module.lora.handle.remove()  # type: ignore[union-attr, operator]
            module.register_forward_hook(look_on_itself, with_kwargs=True)
        return adapters


@mutant("article-adapters-never-called", killed_by=["target-exact", "forward-oracle", "grad-oracle"], features=OFFERED)
class NeverCalled(HookedModel):
    """The adapters hang on the model's modules and are trainable, but its own forward never asks for them."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        adapters = super().carry(paths)
        for module in self.hooked().values():
            module.lora.handle.remove()  # type: ignore[union-attr, operator]
        return adapters


@mutant("article-nothing-frozen", killed_by=["base-frozen", "trainable-set-exact"], features=OFFERED)
class NothingFrozen(HookedModel):
    """Nobody freezes the model before the adapters are attached: all of it is handed to the optimiser."""

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        self.module.requires_grad_(requires_grad=True)


@mutant("article-attention-only", killed_by=["target-exact"], features=OFFERED)
class AttentionOnly(HookedModel):
    """Query, key and value are adapted whatever is asked for: the feed-forward layers are left out in silence."""

    def plan(self, name: str, spec: LoraSpec, dtype: torch.dtype | None = None) -> dict[str, Delta]:
        names = ("query", "key", "value", "q_proj", "k_proj", "v_proj")
        return {path: delta for path, delta in super().plan(name, spec, dtype).items() if path.endswith(names)}


@mutant("article-whole-model-saved", killed_by=["roundtrip", "interop"], features=OFFERED)
class WholeModelSaved(BrokenStore):
    """The model's own state is saved, adapters inside; what loads it knows the model's names alone and drops them."""

    def dump(self, handle: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        state = {name: tensor.clone() for name, tensor in handle.module.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    def load(self, module: nn.Module, folder: Path) -> ReferenceHandle:  # noqa: ARG002 - the base is there already
        return ReferenceHandle(LoraModel(module))
