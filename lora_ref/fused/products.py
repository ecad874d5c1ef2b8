"""The small products of a LoRA layer, in the forms that a BLAS does well.

With p = A (r, in) and q = Bᵀ (r, out), x (M, in) and dy (M, out), they are of three kinds:

    h = s x pᵀ (M, r)      y  = x Wᵀ + h q       dp = uᵀ x (r, in)
    u = s dy qᵀ (M, r)     dx = dy W + u p       dq = hᵀ dy (r, out)

So they were fastest with MKL in float32 on two cores (r 4 to 64, M 64 to 2048, widths of 768 to 5632): h as (M, r)
takes about half to all of the time of (r, M), dp as (r, in) a fifth of that of (in, r) in the smallest layer and the
same in the largest. A product that is added to what is there takes half to all of the time of one that is written
anew, so that the large product comes first, and the delta is added to it. s goes into h and u within the gemm, so that
it rounds nothing of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FEW = 16  # for fewer columns than these MKL is slow with a factor whose columns are no rows in memory
WIDE = {torch.float32, torch.float64}
Scaling = float | tuple[tuple[int, float], ...]  # s, or (rank, s) of several adapters whose factors are stacked


def flat(tensor: Tensor) -> Tensor:
    """(..., width) -> (M, width)."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def one_scaling(each: Sequence[tuple[int, Scaling]]) -> Scaling:
    """(Σr, s) of factors that are stacked, as one s where it is the same for all: their product is one gemm then."""
    pairs = tuple(pair for r, s in each if r for pair in (s if isinstance(s, tuple) else ((r, s),)))
    return pairs[0][1] if len({s for _, s in pairs}) == 1 else pairs


def scaled(s: Scaling, factor: float) -> Scaling:
    return tuple((rank, own * factor) for rank, own in s) if isinstance(s, tuple) else s * factor


def stacked(adapters: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, Scaling]:
    """A (r, in), B (out, r) and s of adapters that act together: as one of rank Σr."""
    if len(adapters) == 1:
        return adapters[0]
    a, b, s = zip(*adapters, strict=True)
    return torch.cat(a), torch.cat(b, dim=1), one_scaling([(one.shape[0], own) for one, own in zip(a, s, strict=True)])


def shrink(rows: Tensor, factor: Tensor, s: Scaling, out: Tensor | None = None) -> Tensor:
    """rows (M, width), factor (r, width) -> s·rows·factorᵀ (M, r), in ``out`` if that is given."""
    if out is None:
        out = rows.new_empty(rows.shape[0], factor.shape[0])
    if factor.shape[0] < _FEW and factor.stride(1) != 1:
        factor = factor.contiguous()
    if not isinstance(s, tuple):
        return _scaled_product(out, rows, factor.t(), s)
    ranks = [rank for rank, _ in s]
    for part, own, (_, scale) in zip(torch.split(out, ranks, dim=1), torch.split(factor, ranks), s, strict=True):
        _scaled_product(part, rows, own.t(), scale)
    return out


def _scaled_product(out: Tensor, rows: Tensor, factor: Tensor, s: float) -> Tensor:
    if torch.compiler.is_compiling():
        # s is a number that may change without compiling again; and where out is a part, it cannot be an argument
        return out.copy_(torch.mm(rows, factor).mul_(s))
    return torch.addmm(out, rows, factor, beta=0, alpha=s, out=out)  # with beta = 0 ``out`` is not read


def formed(w: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
    """W + s·B·A (out, in)."""
    return torch.addmm(w, b * s, a) if torch.compiler.is_compiling() else torch.addmm(w, b, a, alpha=s)


def join(
    terms: Sequence[tuple[Tensor, Tensor]],
    inner: Tensor,
    factor: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Σ rows·weight over the terms, + bias, + inner·factor where the mask is 1: (M, width), in the dtype of the terms.

    inner (M, r), factor (r, width). Where they are wider, nothing is rounded before they are added.
    """
    rows, weight = terms[0]
    # A masked delta needs no memory of its own if it is the first, and of few bits the delta loses the least.
    if rows.dtype == inner.dtype and (mask is not None or rows.dtype not in WIDE) and factor.shape[0]:
        out = _started(inner, factor, bias)
        if mask is not None:
            out.mul_(mask)
        return _added(out, terms)
    return expand(_added(_started(rows, weight, bias), terms[1:]), inner, factor, mask)


def _started(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(rows, weight) if bias is None else torch.addmm(bias, rows, weight)


def _added(out: Tensor, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    for rows, weight in terms:
        torch.addmm(out, rows, weight, out=out)  # addmm_, by the name that torch's counter of operations knows
    return out


def expand(out: Tensor, inner: Tensor, factor: Tensor, mask: Tensor | None = None) -> Tensor:
    """out (M, width) + inner·factor where the mask is 1, in the memory of ``out``, as above."""
    if not factor.shape[0]:
        return out
    if mask is None and out.dtype == inner.dtype:
        return torch.addmm(out, inner, factor, out=out)
    delta = inner @ factor  # (M, width)
    if mask is not None:
        delta.mul_(mask)
    return out.copy_(delta.add_(out))
