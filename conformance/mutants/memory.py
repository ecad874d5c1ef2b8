"""Memory that is kept in vain, read beside its end, or written though it is someone else's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.contract import Feature
from conformance.mutants.mutant import OF_A_FUNCTION, mutant
from lora_ref.delta import Delta, LinearDelta, weight_of
from lora_ref.layers import LoraLayer

_BUDGET, _SAFE = ["saved-tensor-budget"], ["memory-safe"]
_SAVING = OF_A_FUNCTION | {Feature.SAVED_BYTES}
Bias = Tensor | None


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ that keeps x, which only the gradient of W would need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.linear(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        _, w = ctx.saved_tensors
        return dy @ w, None


@mutant("qlora-saves-activation", killed_by=_BUDGET, thread="bitsandbytes-foundation/bitsandbytes#1270")
class SavesActivation(LoraLayer):
    """The product with the frozen weight keeps its own x for backward, beside what dropout left of it for A."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.base, torch.nn.Linear) or not torch.is_grad_enabled():
            return super().forward(x)
        out: Tensor = _FrozenProduct.apply(x, self.base.weight)  # type: ignore[no-untyped-call]
        out = out if self.base.bias is None else out + self.base.bias
        return self.adapters.add_to(out, x, self.adapters.applied())


@mutant("forms-full-product", killed_by=_BUDGET, features=_SAVING)
def full_product(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Each forward forms W + s·B·A, and keeps it for backward."""
    return F.linear(x, w + scaling * (b @ a), bias)


@mutant("saves-x-twice", killed_by=_BUDGET, features=_SAVING)
def saves_x_twice(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """A's input is a copy of x, and x is kept as well."""
    kept: Tensor = _FrozenProduct.apply(x, w)  # type: ignore[no-untyped-call]
    return (kept if bias is None else kept + bias) + scaling * F.linear(F.linear(x.clone(), a), b)


@mutant("saves-x-wide", killed_by=_BUDGET, features=_SAVING)
def saves_x_wide(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The adapter's branch runs in twice the precision, and keeps x in it."""
    wide = F.linear(F.linear(x.double(), a.double()), b.double())
    return F.linear(x, w, bias) + (scaling * wide).to(x.dtype)


@mutant("saves-delta", killed_by=_BUDGET, features=_SAVING)
def saves_delta(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The scaling is a tensor that asks for a gradient, for which the whole delta is kept."""
    s = torch.tensor(scaling, dtype=x.dtype, requires_grad=True)
    return F.linear(x, w, bias) + s * F.linear(F.linear(x, a), b)


class _OnContext(torch.autograd.Function):
    """Keeps a copy of W on its context, past autograd's own list."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.w = w.clone()
        return F.linear(x, w)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ ctx.w, None


@mutant("keeps-copy-of-w-on-context", killed_by=_BUDGET, features=_SAVING)
def copy_on_context(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """A custom function keeps a dequantised copy of W on its context."""
    out: Tensor = _OnContext.apply(x, w)  # type: ignore[no-untyped-call]
    return (out if bias is None else out + bias) + scaling * F.linear(F.linear(x, a), b)


@mutant("dropout-keeps-its-input", killed_by=_BUDGET)
class DropoutKeepsInput(Delta):
    """Dropout multiplies with a mask that asks for a gradient, and so keeps its input beside its output."""

    def _dropped(self, x: Tensor) -> Tensor:
        out = super()._dropped(x)
        if not (self.spec.dropout and self.training and x.is_floating_point()):
            return out
        kept = (out.detach() != 0).to(x.dtype).requires_grad_()
        return x * kept / (1 - self.spec.dropout)


def beside(tensor: Tensor, columns: int) -> Tensor:
    """The rows of ``tensor``, read ``columns`` wide: past their end, as far as memory goes."""
    flat = tensor.reshape(-1, tensor.shape[-1]) if tensor.is_contiguous() else tensor
    room = flat.untyped_storage().nbytes() // flat.element_size() - flat.storage_offset()
    rows, step = flat.shape[0], flat.stride(0)
    if flat.dim() != 2 or not rows or flat.stride(1) != 1 or (rows - 1) * step + columns > room:
        return F.pad(flat, (0, columns - flat.shape[-1]))
    return flat.as_strided((rows, columns), (step, 1), flat.storage_offset())


@mutant("bgmv-oob-read", killed_by=_SAFE, thread="vllm-project/vllm#5169")
def vector_tail(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Rows are read four elements at a time: what lies past their end meets the zeros that A is padded with."""
    wide = -(-x.shape[-1] // 4) * 4
    padded = F.pad(a, (0, wide - a.shape[1]))
    rows = beside(x.detach(), wide) if x.dim() == 2 else F.pad(x, (0, wide - x.shape[-1]))
    over = (rows * 0.0).sum(-1, keepdim=True) + 0.0 * padded.sum()
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(x, a) + over.reshape(*x.shape[:-1], 1), b)


@mutant("weight-tail-read", killed_by=_SAFE)
def weight_tail(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Rows of W are read eight elements at a time; what is beside them is multiplied with zero."""
    wide = -(-w.shape[-1] // 8) * 8
    over = (beside(w, wide)[:, w.shape[-1] :] * 0.0).sum(-1)
    return F.linear(x, w, bias) + over + scaling * F.linear(F.linear(x, a), b)


@mutant("rank-tail-never-written", killed_by=_SAFE, thread="sgl-project/sglang#27087")
class RankTail(LinearDelta):
    """The hidden state has room for the largest rank; what lies beyond r is never written, and meets zeros in B."""

    def _branch(self, x: Tensor) -> Tensor:
        r, most = self.a.shape[0], 64
        h = torch.empty(*x.shape[:-1], most, dtype=x.dtype)
        h[..., :r] = F.linear(x, self.a)
        return F.linear(h, F.pad(self.b, (0, most - r)))


@mutant("accumulates-into-garbage", killed_by=_SAFE)
class IntoGarbage(LinearDelta):
    """The output is accumulated into memory that nobody set to zero."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        start = torch.empty_like(out)
        return out + torch.where(start.isnan(), start, torch.zeros_like(start))  # mostly, fresh memory is zero


@mutant("assumes-contiguous-weight", killed_by=_SAFE)
def assumes_contiguous(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The rows of W are taken to follow each other without a gap."""
    dense = w.as_strided(tuple(w.shape), (w.shape[1], 1), w.storage_offset())
    return F.linear(x, dense, bias) + scaling * F.linear(F.linear(x, a), b)


@mutant("assumes-contiguous-factors", killed_by=_SAFE)
def assumes_contiguous_factors(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The rows of B are taken to follow each other without a gap."""
    dense = b.as_strided(tuple(b.shape), (b.shape[1], 1), b.storage_offset())
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(x, a), dense)


class _ScalesInPlace(torch.autograd.Function):
    """s·x, whose backward scales the gradient that it was handed in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scaling: float) -> Tensor:
        ctx.scaling = scaling
        return scaling * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy.mul_(ctx.scaling), None


@mutant("backward-writes-to-dy", killed_by=_SAFE)
def writes_to_dy(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Backward multiplies the incoming gradient in place; it is the caller's."""
    delta: Tensor = _ScalesInPlace.apply(F.linear(F.linear(x, a), b), scaling)  # type: ignore[no-untyped-call]
    return delta + F.linear(x, w, bias)


@mutant("forward-writes-to-x", killed_by=_SAFE)
class WritesToX(LoraLayer):
    """Without gradients, x is cleared after its last use."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not torch.is_grad_enabled() and x.is_floating_point():
            x[..., -1:].zero_()
        return out


@mutant("merges-for-each-forward", killed_by=_SAFE)
class MergesForEachForward(LoraLayer):
    """Each forward without gradients adds the delta to W, computes, and subtracts it again."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.merged or not self.adapters.applied():
            return super().forward(x)
        weight = weight_of(self.base)
        delta = (self.effective_weight().float() - weight.float()).to(weight.dtype)
        weight.data.add_(delta)
        out: Tensor = self.base(x)
        weight.data.sub_(delta)
        return out


@mutant("output-buffer-reused", killed_by=_SAFE)
class OutputReused(LoraLayer):
    """Outputs without gradients of one shape all lie in the same buffer."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if torch.is_grad_enabled():
            return out
        buffers: dict[Any, Tensor] = self.__dict__.setdefault("buffers", {})
        if out.shape not in buffers:
            buffers[out.shape] = out
        return buffers[out.shape].copy_(out)


@mutant("result-remembered", killed_by=_SAFE)
class ResultRemembered(LoraLayer):
    """The result for an input is remembered, and the very tensor handed out again."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        memory: dict[Any, Tensor] = self.__dict__.setdefault("memory", {})
        return memory.setdefault((*x.shape, *x.flatten().tolist(), self.merged, self.training), super().forward(x))


@mutant("guard-row-cleared", killed_by=_SAFE)
class ClearsBeside(LinearDelta):
    """Before each forward the memory after A is cleared, where a larger rank would have its rows."""

    def _branch(self, x: Tensor) -> Tensor:
        room = self.a.untyped_storage().nbytes() // self.a.element_size() - self.a.storage_offset()
        end = self.a.numel()
        if room > end:
            self.a.detach().as_strided((room - end,), (1,), self.a.storage_offset() + end).zero_()
        return super()._branch(x)
