"""Operators: one function, one thing wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.contract import Array, Grads, Weights
from conformance.mutants.mutant import OF_A_FUNCTION, mutant
from conformance.mutants.parts import gradient_only, on_gradient
from conformance.torch_operator import TorchOperator
from lora_ref.spec import LoraSpec

Bias = Tensor | None


def lora(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The right one: x (..., in), w (out, in), a (r, in), b (out, r) -> (..., out)."""
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(x, a), b)


@mutant("operator-scaling-ignored", killed_by=["scaling-law"])
def scaling_ignored(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:  # noqa: ARG001
    """The operator takes s and does not use it."""
    return lora(x, w, bias, a, b, 1.0)


@mutant("operator-scaling-twice", killed_by=["scaling-once", "forward-oracle"])
def scaling_twice(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Both kernels multiply by s."""
    return lora(x, w, bias, a, scaling * b, scaling)


@mutant("operator-scaling-twice-in-da", killed_by=["scaling-once", "grad-oracle"])
def scaling_twice_in_da(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The backward kernel multiplies the gradient of A by s once more."""
    return lora(x, w, bias, on_gradient(a, lambda gradient: scaling * gradient), b, scaling)


@mutant("operator-bias-twice", killed_by=["base-path-untouched"])
def bias_twice(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Both kernels add the bias."""
    out = lora(x, w, bias, a, b, scaling)
    return out if bias is None else out + bias


@mutant("operator-bias-scaled", killed_by=["base-path-untouched"])
def bias_scaled(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The bias is added before s multiplies."""
    return lora(x, w, None if bias is None else scaling * bias, a, b, scaling)


@mutant("operator-delta-missing", killed_by=["forward-oracle"])
def delta_missing(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The output is the base's; gradients are right."""
    delta = scaling * F.linear(F.linear(x, a), b)
    return F.linear(x, w, bias) + gradient_only(delta)


@mutant("operator-dx-without-delta", killed_by=["grad-oracle"])
def dx_without_delta(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The gradient of x is dy W alone."""
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(x.detach(), a), b)


@mutant("operator-dx-without-base", killed_by=["grad-oracle", "base-path-untouched"])
def dx_without_base(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The gradient of x is the adapter's share alone: what is frozen is taken for what passes nothing back."""
    return F.linear(x.detach(), w, bias) + scaling * F.linear(F.linear(x, a), b)


@mutant("operator-gradients-swapped-where-square", killed_by=["grad-oracle"])
def square_db(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The gradient of B is transposed where the rank equals the number of outputs."""
    square = b.shape[0] == b.shape[1]
    return lora(x, w, bias, a, on_gradient(b, lambda gradient: gradient.T) if square else b, scaling)


@mutant("operator-trains-base", killed_by=["base-frozen"])
def trains_base(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The operator also computes the gradient of W."""
    return lora(x, w.requires_grad_(), bias, a, b, scaling)


@mutant(
    "splitk-nondeterminism",
    killed_by=["eval-deterministic"],
    thread="vllm-project/vllm#50278, sgl-project/sglang#38337",
)
def split_k(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Partial sums over the inputs are added in whatever order they are ready."""
    order = torch.randperm(x.shape[-1])
    return lora(x[..., order], w[:, order], bias, a[:, order], b, scaling)


@mutant("operator-answers-in-float32", killed_by=["dtype-preserved"], dtypes=("bfloat16",))
def in_float32(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The operator answers in its accumulator's dtype."""
    return lora(x.float(), w.float(), None if bias is None else bias.float(), a.float(), b.float(), scaling)


@mutant("operator-low-precision-products", killed_by=["precision-bound", "forward-oracle"])
def low_precision(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Products of float32 are taken with ten bits, as fast matrix units do it unless told otherwise."""
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(_ten_bits(x), _ten_bits(a)), b)


def _ten_bits(wide: Tensor) -> Tensor:
    return (wide.detach().contiguous().view(torch.int32) & -8192).view(torch.float32) + gradient_only(wide)


@mutant("operator-row-tail-lost", killed_by=["shape-general"])
def row_tail_lost(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Rows beyond the last whole tile of 32 get no delta, in batches of more than one tile."""
    out = F.linear(x, w, bias)
    delta = (scaling * F.linear(F.linear(x, a), b)).reshape(-1, out.shape[-1])
    n = len(delta)
    return out + (delta if n < 32 else F.pad(delta[: n - n % 32], (0, 0, 0, n % 32))).reshape(out.shape)


@mutant("operator-strides-ignored", killed_by=["layout-agnostic"])
def strides_ignored(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The kernel is told where x begins, and nothing about its strides."""
    flat = torch.as_strided(x, x.shape, torch.empty(x.shape, device="meta").stride())
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(flat, a), b)


@mutant("operator-gradients-in-float32", killed_by=["dtype-preserved"], dtypes=("bfloat16",), features=OF_A_FUNCTION)
class GradientsInFloat32(TorchOperator):
    """The gradients of A and B come in their accumulator's dtype."""

    def __init__(self) -> None:
        super().__init__(lora)

    def vjp(self, spec: LoraSpec, weights: Weights, x: Array, dy: Array) -> Grads:
        grads = super().vjp(spec, weights, x, dy)
        assert grads.da is not None
        assert grads.db is not None
        return Grads(grads.y, grads.dx, grads.da.astype("float32"), grads.db.astype("float32"), grads.base)
