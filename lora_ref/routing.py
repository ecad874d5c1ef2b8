"""One batch, many adapters: each row is served by its own, or by none. Plain to read; kernels are judged against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from lora_ref.errors import LoraError

Routed = tuple[Tensor, Tensor, float]  # A (r, in), B (out, r) and s of one adapter; ranks may differ


def forward(x: Tensor, w: Tensor, bias: Tensor | None, adapters: Sequence[Routed], index: Sequence[int]) -> Tensor:
    """Row i of y (rows, out) is that of x (rows, in) with adapter ``index[i]``; -1: the base alone.

    Raises:
        LoraError: not one index for each row, or one that names no adapter.
    """
    check_index(index, len(x), len(adapters))
    out = F.linear(x, w, bias)  # (rows, out)
    total = out.to(torch.promote_types(out.dtype, torch.float32))
    own = torch.tensor([*index], dtype=torch.int64, device=x.device)  # (rows,)
    for nth, (a, b, s) in enumerate(adapters):
        rows = (own == nth).nonzero().squeeze(1)  # (n,)
        h = F.linear(x[rows].to(a.dtype), a)  # (n, in) -> (n, r)
        total = total.index_add(0, rows, (s * F.linear(h, b)).to(total.dtype))  # (n, out)
    return total.to(out.dtype)


def check_index(index: Sequence[int], rows: int, adapters: int) -> None:
    if len(index) != rows:
        raise LoraError(f"{rows} rows need as many indices, got {len(index)}")
    for nth in index:
        if not -1 <= nth < adapters:
            raise LoraError(f"there is no adapter {nth}; there are {adapters}, and -1 is the base alone")
