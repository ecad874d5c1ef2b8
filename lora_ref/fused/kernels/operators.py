"""The LoRA linear as torch operators, with fake implementations and its gradients.

    forward    h = s x Aᵀ          y = x Wᵀ + bias + h Bᵀ       (Hu et al., 2021, arXiv:2106.09685, equation 3)
    backward   g = s dy B          dx = dy W + g A      dA = gᵀ x      dB = dyᵀ h

Each formula is one kernel. Kept for the backward: x, and the r columns of h. Operators are opaque to torch.compile, and
importing this needs neither Triton nor a GPU; only running one does. Second derivatives raise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_ref.fused.kernels.requirements import check_base, check_factors, kernel_calls


def lora_linear(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """y = x Wᵀ + bias + s (x Aᵀ) Bᵀ.

    x (..., in), w (out, in), bias (out,), a (r, in), b (out, r) -> (..., out). x, w and bias are all float32, float16
    or bfloat16; a and b are of the same dtype, or float32. Any strides will do; leading dimensions that are no view of
    one are copied into one. Dropout is the caller's.

    Raises:
        LoraError: shapes or dtypes that do not fit, no Triton, or tensors on a CPU without TRITON_INTERPRET=1.
    """
    rows = x.reshape(-1, x.shape[-1])  # (M, in)
    y: Tensor = torch.ops.lora_ref.lora_linear(rows, w, bias, a, b, scaling)[0]  # (M, out)
    return y.reshape(*x.shape[:-1], w.shape[0])


@torch.library.custom_op("lora_ref::shrink", mutates_args=())
def shrink(x: Tensor, a: Tensor, scaling: float) -> Tensor:
    """s x Aᵀ: x (M, in), a (r, in) -> (M, r) in the dtype of a."""
    h: Tensor = kernel_calls().shrink(x, a, scaling)
    return h


@shrink.register_fake
def _(x: Tensor, a: Tensor, scaling: float) -> Tensor:  # noqa: ARG001
    return a.new_empty(x.shape[0], a.shape[0])


@torch.library.custom_op("lora_ref::linear_expand", mutates_args=())
def linear_expand(x: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor:
    """x Wᵀ + bias + h Bᵀ: x (M, in), w (out, in), bias (out,), h (M, r), b (out, r) -> (M, out)."""
    y: Tensor = kernel_calls().linear_expand(x, w, bias, h, b)
    return y


@linear_expand.register_fake
def _(x: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], w.shape[0])


@torch.library.custom_op("lora_ref::factor_gradient", mutates_args=())
def factor_gradient(t: Tensor, v: Tensor, transposed: bool) -> Tensor:  # noqa: FBT001 - torch's schema wants it so
    """Tᵀ V, or its transpose: t (M, r), v (M, C) -> (r, C) or (C, r) in the dtype of t."""
    d: Tensor = kernel_calls().gradient(t, v, transposed=transposed)
    return d


@factor_gradient.register_fake
def _(t: Tensor, v: Tensor, transposed: bool) -> Tensor:  # noqa: FBT001
    r, c = t.shape[1], v.shape[1]
    return t.new_empty(c, r) if transposed else t.new_empty(r, c)


@torch.library.custom_op("lora_ref::lora_linear", mutates_args=())
def _lora_linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """y (M, out) and h = s x Aᵀ (M, r)."""
    check_base(x, w, bias)
    check_factors(x, a, b, w.shape[0], w.dtype)
    calls = kernel_calls()
    h = calls.shrink(x, a, scaling)
    return calls.linear_expand(x, w, bias, h, b), h


@_lora_linear.register_fake
def _(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    check_base(x, w, bias)
    check_factors(x, a, b, w.shape[0], w.dtype)
    return x.new_empty(x.shape[0], w.shape[0]), a.new_empty(x.shape[0], a.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w, _, a, b, ctx.scaling = inputs
    need_x, need_w, _, need_a, need_b, _ = ctx.needs_input_grad[:6]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # h has no gradient, so no zeros in its place
    kept = (
        x if need_a or need_w else None,
        w if need_x else None,
        a if need_x else None,
        b if need_x or need_a else None,
        output[1] if need_b else None,
    )
    ctx.save_for_backward(*kept)


def _gradients(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    ops = torch.ops.lora_ref
    x, w, a, b, h = ctx.saved_tensors
    need_x, need_w, need_bias, need_a, need_b, _ = ctx.needs_input_grad
    g = ops.shrink(dy, b.T, ctx.scaling) if need_x or need_a else None  # (M, r)
    return (
        ops.linear_expand(dy, w.T, None, g, a.T) if need_x else None,  # (M, in)
        dy.T @ x if need_w else None,  # (out, in)
        dy.sum(0) if need_bias else None,  # (out,)
        ops.factor_gradient(g, x, False) if need_a else None,  # (r, in)  # noqa: FBT003
        ops.factor_gradient(h, dy, True) if need_b else None,  # (out, r)  # noqa: FBT003
        None,
    )


torch.library.register_autograd("lora_ref::lora_linear", _gradients, setup_context=_keep)
