"""A well-read article's adapter: five defects, each alone."""

from __future__ import annotations

from conformance.contract import Weights
from conformance.mutants.mutant import ReferenceLayer, mutant
from conformance.torch_layer import Root
from lora_ref.spec import LoraSpec


@mutant("article-base-not-frozen", killed_by=["base-frozen"])
class BaseNotFrozen(ReferenceLayer):
    """The base keeps asking for gradients and is trained along."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        root.layer.base.requires_grad_(requires_grad=True)
