"""Several projections of one x (query, key and value; gate and up) on plain tensors: what their functions are made of.

Their A are stacked, so that h, dA and the adapters' share of dx are one product each, whatever the number of
projections, and dx is added up in one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from lora_ref.fused.dropout import keep
from lora_ref.fused.orders import Need
from lora_ref.fused.precision import cast
from lora_ref.fused.products import Scaling, flat, join, one_scaling, scaled, shrink


class Projection(NamedTuple):
    """w (out, in) and bias (out,), frozen; a (r, in), b (out, r) and s, as ``lora_ref.fused.linear`` takes them.

    a and b are None where there is no adapter.
    """

    w: Tensor
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    s: Scaling = 1.0


@dataclass
class Stack:
    """``p`` (Σr, in) and each of ``q`` (r, out) are A and Bᵀ in the dtype that their products are formed in.

    A projection without an adapter has one of rank 0. ``s`` is that of each.
    """

    projections: Sequence[Projection]
    p: Tensor
    q: list[Tensor]
    s: list[Scaling]
    low: torch.dtype | None

    @classmethod
    def of(cls, projections: Sequence[Projection], low: torch.dtype | None, dropout: float) -> Stack:
        wide = low or reduce(
            torch.promote_types, {t.dtype for each in projections for t in each[:4:2] if t is not None}
        )
        p, q = [], []
        for w, _, a, b, _ in projections:
            p.append(w.new_empty(0, w.shape[1], dtype=wide) if a is None else cast(a, wide))
            q.append(w.new_empty(0, w.shape[0], dtype=wide) if b is None else cast(b, wide).t())
        s = [scaled(each.s, 1 / (1 - dropout)) if dropout else each.s for each in projections]
        return cls(projections, p[0] if len(p) == 1 else torch.cat(p), q, s, low)

    def split(self, stacked: Tensor, dim: int) -> list[Tensor]:
        """What is Σr long in ``dim``, for each projection."""
        if len(self.q) == 1:
            return [stacked]
        return list(stacked.split_with_sizes([q.shape[0] for q in self.q], dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """x (..., in) -> each y (..., out), and h (M, Σr)."""
        rows = flat(x)
        s = one_scaling([(q.shape[0], own) for q, own in zip(self.q, self.s, strict=True)])
        h = shrink(self._seen(x, mask), self.p, s)
        outputs = []
        for (w, bias, *_), q, own in zip(self.projections, self.q, self.split(h, 1), strict=True):
            low_bias = None if bias is None else cast(bias, self.low)
            y = join([(rows, cast(w, self.low).t())], own, q, low_bias)
            outputs.append(y.view(*x.shape[:-1], w.shape[0]))  # (..., out)
        return outputs, h

    def backward(
        self, d_out: Sequence[Tensor], x: Tensor | None, h: Tensor | None, mask: Tensor | None, need: Need
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """dx (M, in), and of each projection dA and dB, as far as they are needed; x for dA, h for dB."""
        d_rows = [flat(dy).contiguous() for dy in d_out]  # (M, out)
        u = d_rows[0].new_empty(d_rows[0].shape[0], self.p.shape[0], dtype=self.p.dtype)  # (M, Σr)
        gradients: list[Tensor | None] = [None] * (2 * len(d_rows))
        of_u, of_h = self.split(u, 1), None if h is None else self.split(h, 1)
        for nth, (dy, each, q, s) in enumerate(zip(d_rows, self.projections, self.q, self.s, strict=True)):
            dy_wide = cast(dy, u.dtype)
            if need.x or need.a:
                shrink(dy_wide, q, s, of_u[nth])
            if of_h is not None and each.b is not None:
                gradients[2 * nth + 1] = cast(of_h[nth].t() @ dy_wide, each.b.dtype).t()  # (out, r)
        if need.a and x is not None:
            da = self.split(u.t() @ self._seen(x, mask), 0)  # (r, in)
            for nth, each in enumerate(self.projections):
                gradients[2 * nth] = None if each.a is None else cast(da[nth], each.a.dtype)
        if not need.x:
            return None, gradients
        terms = [(dy, cast(each.w, self.low)) for dy, each in zip(d_rows, self.projections, strict=True)]
        return join(terms, u, self.p, None, mask), gradients

    def _seen(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What A sees: (M, in)."""
        return cast(keep(flat(x), mask), self.p.dtype)
