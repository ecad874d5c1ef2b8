"""Triton kernels of this project: the fused linear as an Operator, row-routed adapters as a Batch.

On a machine with a CUDA GPU they are judged there. Without one they run in Triton's interpreter, which must be asked
for before Python starts: ``TRITON_INTERPRET=1 lora-conformance run --backend triton``. Interpreted, bfloat16 is
multiplied as float32 and rounded by torch, since the interpreter's own bfloat16 is wrong in both; on a GPU it is not.
Times that are measured interpreted say nothing of the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from torch import Tensor

from conformance.contract import Array, Backend, Feature, Manifest, Weights
from conformance.saved import saved_bytes
from conformance.torch_arrays import to_torch
from conformance.torch_batch import Serve, TorchBatch
from conformance.torch_operator import TorchOperator
from lora_ref.fused.kernels import Routing, Stacked, device, lora_linear, routed_linear
from lora_ref.oracle import Numerics
from lora_ref.spec import LoraSpec

DEVICE = device()


def _placed(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.to(DEVICE)


def on_device(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Whatever device the tensors are on, and y on that of x."""
    y = lora_linear(_placed(x), _placed(w), _placed(bias), _placed(a), _placed(b), scaling)
    return y.to(x.device)


class TritonOperator(TorchOperator):
    def __init__(self) -> None:
        super().__init__(on_device)

    def saved_bytes(self, spec: LoraSpec, weights: Weights, x: Any) -> int:
        """Of tensors that are on the device already."""
        x, w, a, b = (_placed(to_torch(v)) for v in (x, weights.w, weights.a, weights.b))  # type: ignore[arg-type]
        bias = None if weights.bias is None else _placed(to_torch(weights.bias))
        for leaf in (x, a, b):
            leaf.requires_grad_()
        owned = [tensor for tensor in (w, bias, a, b) if tensor is not None]
        return saved_bytes(lambda: lora_linear(x, w, bias, a, b, spec.scaling), owned)


class TritonBatch(TorchBatch):
    def prepare(self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]]) -> Serve:
        w = _placed(to_torch(weights.w))
        w = w.T if weights.geometry.transposed else w  # type: ignore[attr-defined]
        bias = None if weights.bias is None else _placed(to_torch(weights.bias))
        scalings = [replace(spec, r=a.shape[0]).scaling for a, _ in adapters]
        stacked = Stacked.of(
            [(_placed(to_torch(a)), _placed(to_torch(b)), s) for (a, b), s in zip(adapters, scalings, strict=True)]
        )

        def serve(x: Tensor, index: Sequence[int]) -> Tensor:
            routing = Routing.of(index, len(adapters), DEVICE)
            return routed_linear(_placed(x), w, bias, stacked, routing).to(x.device)

        return serve


backend = Backend(
    Manifest(
        name="triton",
        version=version("lora-conformance"),
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset({Feature.BIAS, Feature.RSLORA, Feature.MIXED_DTYPE, Feature.SAVED_BYTES}),
        numerics=Numerics(scale="hidden"),
        requires=("triton>=3.7",),
    ),
    operator=TritonOperator(),
    batch=TritonBatch(),
)
