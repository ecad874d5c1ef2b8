"""Dropout whose mask costs one byte an element to keep, and whose scale 1/(1-p) goes into s."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(x: Tensor, p: float) -> Tensor:
    """A mask in the shape of x, 1 with probability 1 - p (to 2⁻²⁴) and else 0, from the generator that users seed.

    On a CPU half of all that dropout costs is to draw it: comparing uniform numbers takes half as long as
    ``bernoulli_``, and products with bytes a third of the time of those with truth values.
    """
    return (torch.rand(x.shape, device=x.device) >= p).view(torch.uint8)


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """x where the mask is 1, and zero elsewhere."""
    return x if mask is None else x * mask
