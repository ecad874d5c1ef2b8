"""A linear layer whose weight is stored in 4 or 8 bits, as a torch module."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import nn

from conformance.contract import Array
from conformance.quantiser import BLOCK, quantise
from conformance.torch_arrays import to_torch


class QuantisedLinear(nn.Module):
    """y = x W_qᵀ + bias in the dtype of x; W_q is formed anew in each forward, in float32, and rounded to that dtype.

    ``packed`` and ``scales`` are as in ``conformance.quantiser.Packed``; ``weight`` is a parameter of packed integers,
    as in the libraries that do this, and no tensor here asks for gradients.
    """

    def __init__(self, w: Array, bias: Array | None, bits: int) -> None:
        super().__init__()
        packed = quantise(w, bits)
        self.out_features, self.in_features = w.shape
        self.bits, self.compute_dtype = bits, to_torch(w[:0]).dtype
        self.weight = nn.Parameter(torch.from_numpy(packed.stored), requires_grad=False)
        self.register_buffer("scales", torch.from_numpy(packed.scales))
        self.bias = None if bias is None else nn.Parameter(to_torch(bias).contiguous(), requires_grad=False)

    scales: torch.Tensor

    def dequantized_weight(self) -> torch.Tensor:
        """W_q (out, in) in the dtype that the layer was made for."""
        q = self.weight
        if self.bits == 4:
            q = torch.cat([q >> 4, q & 15], dim=1).to(torch.int8) - 8  # type: ignore[assignment]
        numbers = q.to(torch.float32).view(*self.scales.shape, BLOCK) * self.scales[..., None]
        return numbers.view(self.out_features, -1)[:, : self.in_features].to(self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantized_weight().to(x.dtype), self.bias)  # (..., in) -> (..., out)
