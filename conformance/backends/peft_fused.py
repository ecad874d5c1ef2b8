"""PEFT with its linear layers accelerated by ``lora_ref.fused``: it must pass what PEFT passes.

Two of PEFT's gaps are closed by it: mixed batches round once, and DoRA takes an input without leading dimensions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.backends import peft
from conformance.backends.peft_gaps import GAPS
from conformance.contract import Backend, Gap, Weights
from conformance.torch_layer import Root
from lora_ref.fused import accelerate
from lora_ref.oracle import Numerics
from lora_ref.spec import LoraSpec


class PeftFusedLayer(peft.PeftLayer):
    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        accelerate(root)


class PeftFusedHandle(peft.PeftHandle):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        accelerate(module)

    def add(self, adapter: str, spec: LoraSpec) -> None:
        super().add(adapter, spec)
        accelerate(self.module)


class PeftFusedModels(peft.PeftModels):
    kind = PeftFusedHandle


class PeftFusedStore(peft.PeftStore):
    kind = PeftFusedHandle

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        super().add(handle, folder, adapter)
        accelerate(handle.module)


class PeftFusedBatch(peft.PeftBatch):
    def finish(self, root: Root) -> None:
        accelerate(root)


def _left(gap: Gap) -> Gap:
    """Where PEFT's own forward still computes: DoRA with dropout."""
    if "lead" not in gap.where:
        return gap
    case, where = {**gap.case, "dropout": 0.5}, {**gap.where, "dropout": (0.5,)}
    return replace(gap, case=case, where=where, raises="RuntimeError")


backend = Backend(
    replace(
        peft.backend.manifest,
        name="peft+fused",
        numerics=Numerics(order="cheapest"),
        gaps=tuple(_left(gap) for gap in GAPS if gap.invariant != "row-routing"),
    ),
    layer=PeftFusedLayer(),
    model=PeftFusedModels(),
    store=PeftFusedStore(),
    batch=PeftFusedBatch(),
)
