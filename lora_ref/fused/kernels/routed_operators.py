"""Row-routed LoRA as torch operators: each row of a batch with the adapter that serves it, or with none.

    forward    h = s_i x A_iᵀ      y = base + h B_iᵀ      backward   g = s_i dy B_i     dx += g A_i
    dA_i = sum over the rows of adapter i of gᵀ x         dB_i = sum over the same rows of dyᵀ h

The base product is torch's own: one matrix for all rows, where nothing is won by grouping. Results do not depend on the
order in which adapters are stacked, nor on what the other rows are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from lora_ref.errors import LoraError
from lora_ref.fused.kernels.requirements import check_base, check_factors, kernel_calls
from lora_ref.fused.kernels.routing import Routing, Stacked


def routed_linear(x: Tensor, w: Tensor, bias: Tensor | None, adapters: Stacked, routing: Routing) -> Tensor:
    """Row i of y (M, out) from row i of x (M, in), w (out, in), bias (out,) and the adapter that ``routing`` names.

    Dtypes as in ``lora_linear``. Differentiable in x, w, bias and the stacked factors.

    Raises:
        LoraError: shapes or dtypes that do not fit, no Triton, or tensors on a CPU without TRITON_INTERPRET=1.
    """
    check_base(x, w, bias)
    stacked = (adapters.a, adapters.b, adapters.ranks, adapters.scalings)
    out = F.linear(x, w, bias)  # (M, out)
    y: Tensor = torch.ops.lora_ref.routed_lora(x, out, *stacked, routing.order, routing.starts)[0]  # (M, out)
    return y


@torch.library.custom_op("lora_ref::routed_shrink", mutates_args=())
def routed_shrink(x: Tensor, a: Tensor, ranks: Tensor, scalings: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """s_i x A_iᵀ: x (M, in), a (adapters, r, in) -> (M, r); zero for rows of no adapter and beyond a rank."""
    calls = kernel_calls()
    h: Tensor = calls.shrink(x, a, scalings, calls.Routes(order, starts, ranks))
    return h


@routed_shrink.register_fake
def _(x: Tensor, a: Tensor, ranks: Tensor, scalings: Tensor, order: Tensor, starts: Tensor) -> Tensor:  # noqa: ARG001
    return a.new_empty(x.shape[0], a.shape[1])


@torch.library.custom_op("lora_ref::routed_expand", mutates_args=())
def routed_expand(h: Tensor, b: Tensor, ranks: Tensor, order: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
    """h B_iᵀ: h (M, r), b (adapters, out, r) -> (M, out) in ``dtype``; zero for rows of no adapter."""
    calls = kernel_calls()
    y: Tensor = calls.expand(None, h, b, calls.Routes(order, starts, ranks), dtype)
    return y


@routed_expand.register_fake
def _(h: Tensor, b: Tensor, ranks: Tensor, order: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    return h.new_empty(h.shape[0], b.shape[1], dtype=dtype)


@torch.library.custom_op("lora_ref::routed_gradient", mutates_args=())
def routed_gradient(t: Tensor, v: Tensor, order: Tensor, starts: Tensor, transposed: bool) -> Tensor:  # noqa: FBT001
    """Tᵀ V over the rows of each adapter: t (M, r), v (M, C) -> (adapters, r, C), or transposed (adapters, C, r)."""
    calls = kernel_calls()
    d: Tensor = calls.gradient(t, v, calls.Routes(order, starts, None), transposed=transposed)
    return d


@routed_gradient.register_fake
def _(t: Tensor, v: Tensor, order: Tensor, starts: Tensor, transposed: bool) -> Tensor:  # noqa: ARG001, FBT001
    n, r, c = starts.shape[0] - 2, t.shape[1], v.shape[1]
    return t.new_empty(n, c, r) if transposed else t.new_empty(n, r, c)


@torch.library.custom_op("lora_ref::routed_lora", mutates_args=())
def routed_lora(
    x: Tensor, base: Tensor, a: Tensor, b: Tensor, ranks: Tensor, scalings: Tensor, order: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """y (M, out) = base + h B_iᵀ, and h = s_i x A_iᵀ (M, r)."""
    _check(x, base, a, b, ranks, scalings, order, starts)
    calls = kernel_calls()
    routes = calls.Routes(order, starts, ranks)
    h = calls.shrink(x, a, scalings, routes)
    return calls.expand(base, h, b, routes, base.dtype), h


@routed_lora.register_fake
def _(
    x: Tensor, base: Tensor, a: Tensor, b: Tensor, ranks: Tensor, scalings: Tensor, order: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    _check(x, base, a, b, ranks, scalings, order, starts)
    return x.new_empty(x.shape[0], b.shape[1], dtype=base.dtype), a.new_empty(x.shape[0], a.shape[1])


def _check(
    x: Tensor, base: Tensor, a: Tensor, b: Tensor, ranks: Tensor, scalings: Tensor, order: Tensor, starts: Tensor
) -> None:
    check_factors(x, a, b, base.shape[1], base.dtype)
    n = a.shape[0]
    if x.shape[0] != base.shape[0] or order.shape != x.shape[:1]:
        raise LoraError(f"{x.shape[0]} rows need as many indices, got {order.shape[0]}; base has {base.shape[0]} rows")
    if a.dim() != 3 or b.dim() != 3 or not n == b.shape[0] == len(ranks) == len(scalings) == len(starts) - 2:
        raise LoraError(f"adapters disagree in number: A {a.shape[0]}, B {b.shape[0]}, routing {len(starts) - 2}")


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, a, b, *routes = inputs
    need_x, _, need_a, need_b = ctx.needs_input_grad[:4]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # h has no gradient, so no zeros in its place
    kept = (
        x if need_a else None,
        a if need_x else None,
        b if need_x or need_a else None,
        output[1] if need_b else None,
    )
    ctx.save_for_backward(*kept, *routes)
    ctx.dtype = x.dtype


def _gradients(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
    ops = torch.ops.lora_ref
    x, a, b, h, ranks, scalings, *rows = ctx.saved_tensors
    need_x, need_base, need_a, need_b = ctx.needs_input_grad[:4]
    g = None  # (M, r)
    if need_x or need_a:
        g = ops.routed_shrink(dy, b.transpose(1, 2), ranks, scalings, *rows)
    return (
        ops.routed_expand(g, a.transpose(1, 2), ranks, *rows, ctx.dtype) if need_x else None,  # (M, in)
        dy if need_base else None,  # (M, out)
        ops.routed_gradient(g, x, *rows, False) if need_a else None,  # (adapters, r, in)  # noqa: FBT003
        ops.routed_gradient(h, dy, *rows, True) if need_b else None,  # (adapters, out, r)  # noqa: FBT003
        *(None,) * 4,
    )


torch.library.register_autograd("lora_ref::routed_lora", _gradients, setup_context=_keep)
