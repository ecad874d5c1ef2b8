"""Each kernel as a function of tensors: shapes checked, strides looked up, memory taken, sums split where that pays.

All raise LoraError for shapes that do not fit: a kernel would read beyond its operands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_ref.errors import LoraError
from lora_ref.fused.kernels.expand import EXPAND
from lora_ref.fused.kernels.gradient import GRADIENT
from lora_ref.fused.kernels.launch import blocks, is_wide, kind_of, rows_about, split, stored_as
from lora_ref.fused.kernels.linear import LINEAR
from lora_ref.fused.kernels.partial_sums import PARTIAL_SUMS
from lora_ref.fused.kernels.shrink import SHRINK


class Routes(NamedTuple):
    """``Routing`` and the adapters' ranks (adapters,) as the kernels read them."""

    order: Tensor
    starts: Tensor
    ranks: Tensor | None

    @property
    def adapters(self) -> int:
        return self.starts.shape[0] - 2


def shrink(
    x: Tensor, a: Tensor, scaling: float | Tensor, routes: Routes | None = None, *, parts: int | None = None
) -> Tensor:
    """s x Aᵀ: x (M, K), a (R, K) -> (M, R) in the dtype of a.

    Routed: a (adapters, R, K), and scaling (adapters,) a tensor; rows without an adapter, and columns beyond an
    adapter's rank, are zero. ``parts``: into how many the sum is split, if not as usual.
    """
    (m, k), r = x.shape, a.shape[-2]
    _must_be(a, r, k)
    if not m * r:
        return a.new_empty(m, r)
    parts = parts or split(k, m, r)
    chunk = blocks(blocks(k, parts), 64) * 64 if parts > 1 else k
    h = _room(a, (m, r), a.dtype, blocks(k, chunk))  # (parts, M, R)
    SHRINK(
        lambda at: (_row_blocks(m, at, routes), blocks(r, at["BLOCK_R"]), len(h)),
        kind_of(x.dtype, a.dtype),
        x=x, a=a, h=h, **_route(routes), scalings=scaling if routes else None,
        scaling=0.0 if routes else scaling, M=m, K=k, R=r, chunk=chunk, rows_about=rows_about(m),
        x_row=x.stride(0), x_col=x.stride(1), a_adapter=a.stride(0) if routes else 0, a_row=a.stride(-2),
        a_col=a.stride(-1), h_part=m * r, WIDE=is_wide(x.dtype, a.dtype),
    )  # fmt: skip
    return _summed(h, a.dtype)


def linear_expand(x: Tensor, w: Tensor, bias: Tensor | None, h: Tensor, b: Tensor) -> Tensor:
    """x Wᵀ + bias + h Bᵀ: x (M, K), w (N, K), bias (N,), h (M, R), b (N, R) -> (M, N) in the dtype of x."""
    (m, k), (n, r) = x.shape, b.shape
    _must_be(w, n, k)
    _must_be(h, m, r)
    if not m * n:
        return x.new_empty(m, n)
    y = _room(x, (m, n), x.dtype)
    LINEAR(
        lambda at: (blocks(m, at["BLOCK_M"]) * blocks(n, at["BLOCK_N"]),),
        kind_of(x.dtype, b.dtype),
        x=x, w=w, bias=bias, h=h, b=b, y=y, M=m, N=n, K=k, R=r, rows_about=rows_about(m),
        x_row=x.stride(0), x_col=x.stride(1), w_row=w.stride(0), w_col=w.stride(1),
        bias_step=0 if bias is None else bias.stride(0), h_row=h.stride(0), h_col=h.stride(1),
        b_row=b.stride(0), b_col=b.stride(1), BASE_WIDE=is_wide(x.dtype, w.dtype), WIDE=is_wide(h.dtype, b.dtype),
    )  # fmt: skip
    return _summed(y, x.dtype)


def expand(base: Tensor | None, h: Tensor, b: Tensor, routes: Routes, dtype: torch.dtype) -> Tensor:
    """base + h Bᵀ, row by row: base (M, N) or none, h (M, R), b (adapters, N, R) -> (M, N) in ``dtype``."""
    (m, r), n = h.shape, b.shape[1]
    _must_be(b, n, r)
    if base is not None:
        _must_be(base, m, n)
    if not m * n:
        return h.new_empty(m, n, dtype=dtype)
    y = _room(h, (m, n), dtype)
    EXPAND(
        lambda at: (_row_blocks(m, at, routes), blocks(n, at["BLOCK_N"])),
        kind_of(dtype, b.dtype),
        base=base, h=h, b=b, y=y, **_route(routes), N=n, R=r, rows_about=rows_about(m),
        base_row=0 if base is None else base.stride(0), base_col=0 if base is None else base.stride(1),
        h_row=h.stride(0), h_col=h.stride(1), b_adapter=b.stride(0), b_row=b.stride(1), b_col=b.stride(2),
        WIDE=is_wide(h.dtype, b.dtype),
    )  # fmt: skip
    return _summed(y, dtype)


def gradient(
    t: Tensor, v: Tensor, routes: Routes | None = None, *, transposed: bool = False, parts: int | None = None
) -> Tensor:
    """Tᵀ V: t (M, R), v (M, C) -> (R, C), or transposed (C, R), in the dtype of t; routed: one for each adapter."""
    (m, r), c = t.shape, v.shape[1]
    _must_be(v, m, c)
    adapters = routes.adapters if routes else 1
    shape = (adapters, *((c, r) if transposed else (r, c)))
    if not adapters * r * c:
        return t.new_empty(shape if routes else shape[1:])
    parts = parts or split(m, c, 64 * adapters, r)
    d = _room(t, shape, t.dtype, parts)  # (parts, adapters, R, C) or (parts, adapters, C, R)
    route = _route(routes)
    GRADIENT(
        lambda at: (blocks(c, at["BLOCK_C"]), adapters * parts, blocks(r, at["BLOCK_R"])),
        kind_of(v.dtype, t.dtype),
        t=t, v=v, d=d, order=route["order"], starts=route["starts"], M=m, C=c, R=r, parts=parts,
        rows_about=rows_about(m), t_row=t.stride(0), t_col=t.stride(1), v_row=v.stride(0), v_col=v.stride(1),
        d_part=d.stride(0), d_adapter=d.stride(1), d_t=d.stride(3 if transposed else 2),
        d_v=d.stride(2 if transposed else 3), WIDE=is_wide(t.dtype, v.dtype),
    )  # fmt: skip
    summed = _summed(d, t.dtype)
    return summed if routes else summed.view(shape[1:])


def _must_be(tensor: Tensor, *shape: int) -> None:
    if tensor.shape[-2:] != shape:
        raise LoraError(f"an operand of shape {tuple(tensor.shape)} is to have {shape}")


def _room(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, parts: int = 1) -> Tensor:
    """Memory (parts, *shape) for a kernel to write: parts of a sum in float32, a whole one as it is stored."""
    return like.new_empty(parts, *shape, dtype=stored_as(dtype) if parts == 1 else torch.float32)


def _summed(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first axis in ``dtype``."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    out = parts.new_empty(parts.shape[1:], dtype=stored_as(dtype))
    size = out.numel()
    PARTIAL_SUMS(lambda at: (blocks(size, at["BLOCK"]),), "single", p=parts, out=out, size=size, parts=len(parts))
    return out.to(dtype)


def _row_blocks(m: int, at: Any, routes: Routes | None) -> int:
    return m // at["BLOCK_M"] + routes.adapters + 1 if routes else blocks(m, at["BLOCK_M"])


def _route(routes: Routes | None) -> dict[str, Any]:
    if routes is None:
        return {"order": None, "starts": None, "ranks": None, "adapters": 0}
    return {"order": routes.order, "starts": routes.starts, "ranks": routes.ranks, "adapters": routes.adapters}
