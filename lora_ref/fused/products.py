"""The four small products of a LoRA layer, in the forms that a BLAS does well.

With p = A (r, in) and q = Bᵀ (r, out), x (M, in) and dy (M, out), they are of three kinds:

    h = s p xᵀ (r, M)      y  = hᵀ q + x Wᵀ      dp = u x
    u = s q dyᵀ (r, M)     dx = uᵀ p + dy W      dq = h dy

The rank stands first in whatever is written: a gemm that writes few long rows is up to eight times faster on a CPU
than one that writes long columns. s goes into h and u within the gemm, so that it rounds nothing of its own. The delta
is written first, and the large product added to it, which saves a pass over y and over dx.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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


def shrink(factor: Tensor, rows: Tensor, s: Scaling, out: Tensor | None = None) -> Tensor:
    """factor (r, width), rows (M, width) -> s·factor·rowsᵀ (r, M), in ``out`` if that is given."""
    columns = rows.t()
    if out is None:
        out = rows.new_empty(factor.shape[0], rows.shape[0])
    if not isinstance(s, tuple):
        return _scaled_product(out, factor, columns, s)
    ranks = [rank for rank, _ in s]
    for part, own, (_, scale) in zip(torch.split(out, ranks), torch.split(factor, ranks), s, strict=True):
        _scaled_product(part, own, columns, scale)
    return out


def _scaled_product(out: Tensor, factor: Tensor, columns: Tensor, s: float) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.mm(factor, columns, out=out).mul_(s)  # a number that may change without compiling again
    return torch.addmm(out, factor, columns, beta=0, alpha=s, out=out)  # with beta = 0 ``out`` is not read


def formed(w: Tensor, a: Tensor, b: Tensor, s: float) -> Tensor:
    """W + s·B·A (out, in)."""
    return torch.addmm(w, b * s, a) if torch.compiler.is_compiling() else torch.addmm(w, b, a, alpha=s)


def join(
    out: Tensor,
    terms: Sequence[tuple[Tensor, Tensor]],
    columns: Tensor,
    factor: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """out (M, width) = Σ rows·weight over the terms, + bias, + columnsᵀ·factor where the mask is 1.

    columns (r, M), factor (r, width). Where they are wider than ``out``, nothing is rounded to the dtype of ``out``
    before they are added.
    """
    delta_first = out.dtype == columns.dtype and factor.shape[0] > 0
    if delta_first:
        _start(out, columns.t(), factor, bias)
        if mask is not None:
            out.mul_(mask)
    for nth, (rows, weight) in enumerate(terms):
        if nth or delta_first:
            torch.addmm(out, rows, weight, out=out)  # addmm_, by the name that torch's counter of operations knows
        else:
            _start(out, rows, weight, bias)
    return out if delta_first else expand(out, columns, factor, mask)


def _start(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        torch.mm(rows, weight, out=out)
    else:
        torch.addmm(bias, rows, weight, out=out)


def expand(out: Tensor, columns: Tensor, factor: Tensor, mask: Tensor | None = None) -> Tensor:
    """out (M, width) + columnsᵀ·factor where the mask is 1, in the memory of ``out``, as above."""
    if not factor.shape[0]:
        return out
    if mask is None and out.dtype == columns.dtype:
        return torch.addmm(out, columns.t(), factor, out=out)
    delta = columns.t() @ factor  # (M, width)
    if mask is not None:
        delta.mul_(mask)
    return out.copy_(delta.add_(out))
