"""A mixture's experts as one module: E linear layers in one weight, each row of x served by the expert it is sent to.

The layout is that of transformers' and Megatron's stacked experts (Fedus et al., 2021, "Switch Transformers",
arXiv:2101.03961, section 2.2, for one expert a row).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn


class ExpertStack(nn.Module):
    """y_i = x_i W_eᵀ with e = ``index[i]``; x (..., in), weight (E, out, in) -> (..., out).

    The router sets ``index``, one expert for each row of x, before the call: what is put around this module, an adapter
    or a wrapper, then needs to know of x alone. A call that is run again (checkpointing) reads it again.
    """

    index: Tensor

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        self.index = torch.empty(0, dtype=torch.int64)  # no buffer: it belongs to a batch, and is never saved
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(±1/√in) for each expert, as nn.Linear."""
        nn.init.uniform_(self.weight, -(bound := self.weight.shape[2] ** -0.5), bound)

    def forward(self, x: Tensor) -> Tensor:
        return by_expert(x, self.index, self.weight)


def by_expert(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Each row of x (..., in) times the matrix of its own expert, of weight (E, out, in) -> (..., out).

    An expert without rows multiplies an empty matrix, so that its gradient is zero and not missing.
    """
    rows = x.reshape(-1, x.shape[-1])  # (M, in)
    order = index.argsort(stable=True)  # (M,): the rows of expert 0 first
    counts = torch.bincount(index, minlength=len(weight)).tolist()  # E numbers of rows
    parts = zip(torch.split(rows[order], counts), weight.unbind(), strict=True)
    y = torch.cat([F.linear(part, w) for part, w in parts])[order.argsort()]  # (M, out)
    return y.reshape(*x.shape[:-1], weight.shape[1])
