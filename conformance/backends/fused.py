"""The project's fast implementation: ``lora_ref.fused``, with everything else inherited from the reference.

It rounds where the reference does or less often, but for the order of the products: in float32 that is the cheapest.
"""

from __future__ import annotations

from importlib.metadata import version

from conformance.backends.reference import (
    FEATURES,
    INIT,
    ReferenceBatch,
    ReferenceLayer,
    ReferenceModel,
    ReferenceStore,
)
from conformance.contract import Backend, Feature, Manifest
from conformance.torch_operator import TorchOperator
from lora_ref import fused
from lora_ref.oracle import Numerics

NUMERICS = Numerics(order="cheapest")


class FusedLayers(ReferenceLayer):
    wrapper = fused.FusedLayer


class FusedModels(ReferenceModel):
    kind = fused.FusedModel


class FusedStore(ReferenceStore):
    kind = fused.FusedModel


class FusedBatch(ReferenceBatch):
    route = staticmethod(fused.batch)


backend = Backend(
    Manifest(
        name="fused",
        version=version("lora-conformance"),
        dtypes=("float32", "bfloat16", "float16"),
        features=FEATURES,
        numerics=NUMERICS,
        init=INIT,
    ),
    layer=FusedLayers(),
    model=FusedModels(),
    store=FusedStore(),
    batch=FusedBatch(),
)

operator = Backend(
    Manifest(
        name="fused-linear",
        version=version("lora-conformance"),
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset({Feature.BIAS, Feature.RSLORA, Feature.MIXED_DTYPE, Feature.SAVED_BYTES}),
        numerics=NUMERICS,
    ),
    operator=TorchOperator(fused.linear),
)
