"""A bare torch function as a backend: the shortest way into the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from conformance.contract import Backend, Feature, Grads, Manifest, Weights
from conformance.guards import given_back
from conformance.saved import saved_bytes
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref.geometry import Linear
from lora_ref.spec import LoraSpec

Function = Callable[..., torch.Tensor]


class TorchOperator:
    """``function(x, w, bias, a, b, scaling) -> y`` as an Operator; autograd gives the gradients.

    x (..., in), w (out, in), bias (out,) or None, a (r, in), b (out, r), scaling a float, y (..., out).
    """

    def __init__(self, function: Function) -> None:
        self.function = function

    def saved_bytes(self, spec: LoraSpec, weights: Weights, x: Any) -> int:
        leaf, a, b = (to_torch(v).requires_grad_() for v in (x, weights.a, weights.b))  # type: ignore[arg-type]
        w, bias = to_torch(weights.w), None if weights.bias is None else to_torch(weights.bias)
        owned = [tensor for tensor in (w, bias, a, b) if tensor is not None]
        return saved_bytes(lambda: self.function(leaf, w, bias, a, b, spec.scaling), owned)

    def vjp(self, spec: LoraSpec, weights: Weights, x: Any, dy: Any) -> Grads:
        assert isinstance(weights.geometry, Linear)
        assert weights.a is not None
        assert weights.b is not None
        x, a, b = (to_torch(v).requires_grad_() for v in (x, weights.a, weights.b))
        frozen = {"weight": to_torch(weights.w)}
        if weights.bias is not None:
            frozen["bias"] = to_torch(weights.bias)
        y = self.function(x, frozen["weight"], frozen.get("bias"), a, b, spec.scaling)
        if y.requires_grad:
            torch.autograd.backward(y, to_torch(dy).to(y.dtype))
        da, db, dx = (None if leaf.grad is None else to_numpy(given_back(leaf.grad)) for leaf in (a, b, x))
        base = {name: to_numpy(t.grad) for name, t in frozen.items() if t.grad is not None}
        return Grads(to_numpy(given_back(y)), dx, da, db, base)


def torch_operator(
    function: Function,
    *,
    name: str,
    version: str = "0",
    dtypes: Iterable[str] = ("float32",),
    features: Iterable[Feature] = (Feature.BIAS, Feature.RSLORA, Feature.SAVED_BYTES),
) -> Backend:
    """A backend of one function; declare further dtypes and features as the function serves them."""
    manifest = Manifest(name, version, tuple(dtypes), frozenset(features))
    return Backend(manifest, operator=TorchOperator(function))
