"""One batch, many adapters, forward and backward: rows are sorted by their adapter, and each adapter serves a slice.

So there are as many small products as there are adapters in the batch, each written where it belongs, and one gather of
x and of y where the rows were not sorted yet. ``lora_ref.routing`` is the plain form of the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from lora_ref.fused.once import once
from lora_ref.fused.precision import as_written, cast, kept, region
from lora_ref.fused.products import expand, flat, shrink
from lora_ref.fused.single import check_frozen
from lora_ref.routing import Routed, check_index


class Segment(NamedTuple):
    """Rows ``start`` to ``stop`` of the sorted batch, which one adapter serves with this s."""

    start: int
    stop: int
    s: float


def batch(x: Tensor, w: Tensor, bias: Tensor | None, adapters: Sequence[Routed], index: Sequence[int]) -> Tensor:
    """Row i of y (rows, ..., out) is that of x (rows, ..., in) with adapter ``index[i]``; -1: the base alone.

    Adapters that serve no row get no gradient.

    Raises:
        LoraError: not one index for each row, or one that names no adapter; W or bias asks for a gradient.
    """
    check_index(index, len(x), len(adapters))
    check_frozen(w, bias)
    order = sorted(range(len(index)), key=index.__getitem__)
    segments, factors, start = [], [], 0
    for nth, rows in groupby(order, key=index.__getitem__):
        stop = start + len(list(rows))
        if nth >= 0:
            a, b, s = adapters[nth]
            segments.append(Segment(start, stop, s))
            factors += [a, b]
        start = stop
    sorting = None if order == list(range(len(order))) else torch.tensor(order, device=x.device)
    y: Tensor = _Routed.apply(x, w, bias, sorting, segments, region(x), *factors)  # type: ignore[no-untyped-call]
    return y


class _Routed(torch.autograd.Function):
    @staticmethod
    @as_written
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        sorting: Tensor | None,
        segments: list[Segment],
        low: torch.dtype | None,
        *factors: Tensor,
    ) -> Tensor:
        x_low = cast(x, low)
        rows = _sorted(x_low, sorting)
        y = F.linear(rows, cast(w, low), None if bias is None else cast(bias, low))  # (rows, ..., out)
        hidden = []
        for (start, stop, s), a, b in zip(segments, factors[::2], factors[1::2], strict=True):
            wide = low or torch.promote_types(w.dtype, a.dtype)
            h = shrink(cast(flat(rows[start:stop]), wide), cast(a, wide), s)  # (tokens, r)
            expand(flat(y[start:stop]), h, cast(b, wide).t())
            hidden.append(h)
        ctx.save_for_backward(kept(x, x_low), w, sorting, *factors, *hidden)
        ctx.known = segments, low, x.dtype
        return _unsorted(y, sorting)

    @staticmethod
    @once
    @as_written
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, sorting, *rest = ctx.saved_tensors
        segments, low, dtype = ctx.known
        factors, hidden = rest[: 2 * len(segments)], rest[2 * len(segments) :]
        gradients: list[Tensor | None] = []
        rows, dy = _sorted(x, sorting), _sorted(dy, sorting).contiguous()
        dx = dy @ cast(w, low) if ctx.needs_input_grad[0] else None  # (rows, ..., in)
        for (start, stop, s), a, b, h in zip(segments, factors[::2], factors[1::2], hidden, strict=True):
            d_own = cast(flat(dy[start:stop]), h.dtype)  # (tokens, out)
            p, q = cast(a, h.dtype), cast(b, h.dtype).t()
            u = shrink(d_own, q, s)  # (tokens, r)
            gradients.append(cast(u.t() @ cast(flat(rows[start:stop]), h.dtype), a.dtype) if a.requires_grad else None)
            gradients.append(cast(h.t() @ d_own, b.dtype).t() if b.requires_grad else None)
            if dx is not None:
                expand(flat(dx[start:stop]), u, p)
        dx = None if dx is None else cast(_unsorted(dx, sorting), dtype)
        return dx, None, None, None, None, None, *gradients


def _sorted(rows: Tensor, sorting: Tensor | None) -> Tensor:
    return rows if sorting is None else rows.index_select(0, sorting)


def _unsorted(rows: Tensor, sorting: Tensor | None) -> Tensor:
    return rows if sorting is None else torch.empty_like(rows).index_copy_(0, sorting, rows)
