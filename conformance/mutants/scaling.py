"""Scaling that is wrong, missing, or applied in the wrong number."""

from __future__ import annotations

import torch
from torch import nn

from conformance.contract import Weights
from conformance.mutants.mutant import ReferenceLayer, mutant
from conformance.torch_layer import Root
from lora_ref.delta import Delta
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec


def deltas(root: Root) -> list[Delta]:
    return [module for module in root.modules() if isinstance(module, Delta)]


def become(module: nn.Module, broken: type) -> None:
    """Give a module a subclass of its own class, in which one method is broken."""
    module.__class__ = type(broken.__name__, (broken, type(module)), {})


class _Alpha:
    """The spec's alpha stands in for its scaling."""

    @property
    def scaling(self) -> float:
        return float(self.spec.alpha * self.factor)  # type: ignore[attr-defined]


@mutant("alpha-not-divided-by-r", killed_by=["scaling-law"], thread="Blaizzy/mlx-vlm#845, rasbt/LLMs-from-scratch#821")
class AlphaNotDividedByR(ReferenceLayer):
    """The delta is multiplied by alpha instead of alpha/r."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        for delta in deltas(root):
            become(delta, _Alpha)


class _NoAlphaInMerge(LoraLayer):
    def effective_weight(self, *names: str) -> torch.Tensor:
        weight = self.base.weight
        assert isinstance(weight, torch.Tensor)
        total = weight.to(torch.float32)
        for name in names:
            delta = self.adapters.delta(name)
            total = total + delta.weight() / delta.scaling
        return total.to(weight.dtype)


@mutant("merge-without-alpha", killed_by=["merge-delta-oracle", "merge-equivalence"], thread="hao-ai-lab/FastVideo#870")
class MergeWithoutAlpha(ReferenceLayer):
    """Merging adds B·A without alpha/r."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        become(root.layer, _NoAlphaInMerge)
