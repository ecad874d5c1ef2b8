"""Dropout whose mask costs one byte an element to keep, and whose scale 1/(1-p) goes into s."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(x: Tensor, p: float) -> Tensor:
    """A mask in the shape of x, true with probability 1 - p (to 2⁻²⁴), from the generator that users seed.

    On a CPU half of all that dropout costs is to draw it, and comparing uniform numbers takes half as long as
    ``bernoulli_``.
    """
    return torch.rand(x.shape, device=x.device) >= p


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x where the mask is true, and zero elsewhere."""
    return x if mask is None else x * mask.to(x.dtype)
