"""One linear layer with LoRA as one autograd function: y = x Wᵀ + bias + s (x Aᵀ) Bᵀ, W and bias frozen.

Between forward and backward it keeps x, h = s x Aᵀ (M, r) and, with dropout, a mask of one byte an element; W, A and B
are there anyway. The gradients are those of ``lora_ref.oracle``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from lora_ref.errors import LoraError
from lora_ref.fused.dropout import draw, keep
from lora_ref.fused.once import once
from lora_ref.fused.orders import FACTORED, Need, Order, cheapest
from lora_ref.fused.precision import as_written, cast, kept, no_region, region
from lora_ref.fused.products import WIDE, Scaling, flat, formed, join, scaled, shrink


def linear(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: Scaling, *, dropout: float = 0.0
) -> Tensor:
    """x (..., in), w (out, in), bias (out,), a (r, in), b (out, r) -> (..., out); ``dropout`` acts on A's input alone.

    Several adapters are one: a stacks their A, b (out, Σr) holds their B side by side, and s may be ((r, s), ...) then.
    A and B may be wider than W, and their products are formed in their dtype; under autocast, all in the region's.
    In float32 and float64 the order of the products is the cheapest one (see ``lora_ref.fused.orders``).

    Raises:
        LoraError: W or bias asks for a gradient.
    """
    check_frozen(w, bias)
    low, need, order = region(x), Need(x.requires_grad, a.requires_grad, b.requires_grad), FACTORED
    # in fewer bits the sum of W and s·B·A would be rounded to them, and the delta would suffer
    if w.dtype == a.dtype in WIDE and not (dropout or low or isinstance(s, tuple)):
        (n, k), r = w.shape, a.shape[0]
        order = cheapest(x.numel() // k, k, n, r, need)
    y: Tensor = _Linear.apply(x, w, bias, a, b, s, dropout, low, order, need)  # type: ignore[no-untyped-call]
    return y


def dora(
    x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float, m: Tensor, *, dropout: float = 0.0
) -> Tensor:
    """y = c (x Wᵀ + s (x Aᵀ) Bᵀ) + bias with c = m / ‖W + s B A‖ and m (out,); see ``lora_ref.dora``.

    A row of norm 0 keeps c = 1. Beside what ``linear`` keeps, the gradient of m needs what c multiplies: (..., out).
    """
    check_frozen(w, bias)
    wide = torch.promote_types(w.dtype, torch.float32)
    with torch.no_grad(), no_region(x.device.type):
        v = formed(w.to(wide), a.to(wide), b.to(wide), s)  # (out, in)
        norm = torch.linalg.vector_norm(v, dim=1)
    need = Need(x.requires_grad, a.requires_grad, b.requires_grad)
    z: Tensor = _Linear.apply(x, w, None, a, b, s, dropout, region(x), FACTORED, need)  # type: ignore[no-untyped-call]
    c = torch.where(norm > 0, m / torch.where(norm > 0, norm, 1), 1).to(z.dtype)
    return z * c if bias is None else torch.addcmul(bias.to(z.dtype), z, c)  # (..., out)


def check_frozen(w: Tensor, bias: Tensor | None) -> None:
    if w.requires_grad or (bias is not None and bias.requires_grad):
        raise LoraError("W and bias are frozen here and get no gradient: set their requires_grad to False")


class _Linear(torch.autograd.Function):
    @staticmethod
    @as_written
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        s: Any,
        dropout: float,
        low: torch.dtype | None,
        order: Order,
        need: Need,
    ) -> Tensor:
        wide, x_low, h, mask = low or torch.promote_types(w.dtype, a.dtype), cast(x, low), None, None
        if order.forward:
            y = F.linear(x, formed(w, a, b, s), bias)  # (..., out)
        else:
            rows = flat(x_low)  # (M, in)
            if dropout:
                mask, s = draw(rows, dropout), scaled(s, 1 / (1 - dropout))
            h = shrink(cast(keep(rows, mask), wide), cast(a, wide), s)  # (M, r)
            low_bias = None if bias is None else cast(bias, low)
            y = join([(rows, cast(w, low).t())], h, cast(b, wide).t(), low_bias)
            y = y.view(*x.shape[:-1], w.shape[0])  # (..., out)
        wants_x = need.a or (need.b and (h is None or order.gradient))
        ctx.save_for_backward(
            kept(x, x_low) if wants_x else None,
            w if need.x else None,
            a,
            b,
            h if need.b and not order.gradient else None,
            mask,
        )
        ctx.known = need, order, s, low, wide, x.shape, x.dtype
        return y

    @staticmethod
    @once
    @as_written
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, a, b, h, mask = ctx.saved_tensors
        need, order, s, low, wide, shape, dtype = ctx.known
        u: Any = None  # (M, r)
        dx = da = db = None
        dy = flat(dy).contiguous()  # (M, out); what was expanded is laid out once
        p, q, dy_wide = cast(a, wide), cast(b, wide).t(), cast(dy, wide)
        if (need.a and not order.gradient) or (need.x and not order.backward):
            u = shrink(dy_wide, q, s)
        if order.gradient:
            d_weight = dy.t() @ flat(x)  # (out, in)
            da = (q @ d_weight).mul_(s) if need.a else None  # (r, in)
            db = (d_weight @ p.t()).mul_(s) if need.b else None  # (out, r)
        else:
            if need.b:
                h = shrink(flat(x), p, s) if h is None else h
                db = cast(h.t() @ dy_wide, b.dtype).t()
            del dy_wide  # where it is a copy, it goes before the next one is made
            if need.a:
                da = cast(u.t() @ cast(keep(flat(x), mask), wide), a.dtype)
        if need.x:
            dx = dy @ formed(w, a, b, s) if order.backward else join([(dy, cast(w, low))], u, p, None, mask)  # (M, in)
            dx = cast(dx, dtype).view(shape)
        return dx, None, None, da, db, None, None, None, None, None
