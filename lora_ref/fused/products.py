"""The four small products of a LoRA layer, in the forms that a BLAS does well.

With p = A (r, in) and q = Bᵀ (r, out), x (M, in) and dy (M, out), they are of three kinds:

    h = s p xᵀ (r, M)      y  += hᵀ q      dp = u x
    u = s q dyᵀ (r, M)     dx += uᵀ p      dq = h dy

The rank stands first in whatever is written: a gemm that writes few long rows is up to eight times faster on a CPU
than one that writes long columns. s goes into h and u within the gemm, so that it rounds nothing of its own, and y and
dx are added to where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Scaling = float | tuple[tuple[int, float], ...]  # s, or (rank, s) of several adapters whose factors are stacked


def flat(tensor: Tensor) -> Tensor:
    """(..., width) -> (M, width)."""
    return tensor.reshape(-1, tensor.shape[-1])


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
    out, columns = rows.new_empty(factor.shape[0], rows.shape[0]) if out is None else out, rows.t()
    if isinstance(s, tuple):
        ranks = [rank for rank, _ in s]
        for part, own, (_, scale) in zip(torch.split(out, ranks), torch.split(factor, ranks), s, strict=True):
            torch.addmm(part, own, columns, beta=0, alpha=scale, out=part)
        return out
    return torch.addmm(out, factor, columns, beta=0, alpha=s, out=out)  # with beta = 0 ``out`` is not read


def expand(out: Tensor, columns: Tensor, factor: Tensor, mask: Tensor | None = None) -> Tensor:
    """out (M, width) + columnsᵀ·factor, where the mask is true, in the memory of ``out``.

    columns (r, M), factor (r, width). Where the product is wider than ``out``, nothing is rounded to the dtype of
    ``out`` before it is added.
    """
    narrow = out.dtype != columns.dtype
    total = out.to(columns.dtype) if narrow else out
    if mask is None:
        torch.addmm(total, columns.t(), factor, out=total)  # addmm_, as torch's counter of operations knows it
    else:
        total.addcmul_(columns.t() @ factor, mask.to(total.dtype))
    return out.copy_(total) if narrow else out
