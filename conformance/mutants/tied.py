"""An adapter on an output head whose weight is the embedding's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, weight_of
from lora_ref.layers import Adapters, LoraLayer
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec

ISOLATED = ["tied-head-isolated"]


@mutant("tied-head-copied", killed_by=ISOLATED)
class HeadCopied(LoraModel):
    """The wrapper gives the head a weight of its own, so that a vocabulary's worth of memory is held twice."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        found = super().carry(paths)
        for layer in self.layers().values():
            weight = weight_of(layer.base)
            layer.base.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        return found


@mutant("tied-delta-in-embedding", killed_by=ISOLATED)
class DeltaInEmbedding(LoraModel):
    """The head's delta is added to the shared weight, so that looking up a token meets it too."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        found = super().carry(paths)
        for layer in self.layers().values():
            for other in self.module.modules():
                if isinstance(other, nn.Embedding) and other.weight is weight_of(layer.base):
                    other.register_forward_hook(partial(_with_delta, layer))
        return found


def _with_delta(layer: LoraLayer, _embedding: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
    for delta in (layer.adapters.delta(name) for name in layer.adapters.active):
        y = y + delta.scaling * delta.b[args[0]] @ delta.a  # (..., r) @ (r, hidden)
    return y


@mutant("tied-step-in-embedding", killed_by=ISOLATED)
class StepInEmbedding(LoraModel):
    """The gradient of the head's B reaches the embedding's rows as well: each backward moves what is looked up."""

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for path, delta in deltas.items():
            if delta.b.requires_grad:
                delta.b.register_hook(partial(_moved, weight_of(self.layers()[path].base)))  # type: ignore[no-untyped-call]


def _moved(weight: Tensor, gradient: Tensor) -> Tensor:
    with torch.no_grad():
        weight -= 0.01 * gradient.mean(dim=1, keepdim=True)
    return gradient
