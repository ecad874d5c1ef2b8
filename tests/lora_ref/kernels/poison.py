"""Tensors inside memory full of NaN: reading beside one shows in the result, writing there shows in the memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from conformance.contract import Array
from conformance.torch_arrays import to_torch

_MARGIN, _GAP = 67, 3  # elements; odd, so that no row is aligned by accident


class Poison:
    """Places arrays on a device, each in a buffer of its own with gaps between its rows."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.held: list[tuple[Tensor, Tensor, Tensor]] = []  # the buffer, a copy of it, and what lies inside

    def place(self, array: Array | Tensor, *, reverse: bool = False) -> Tensor:
        """The same values; ``reverse`` puts the axes in memory in the reverse order, as a transpose does."""
        values = to_torch(array) if isinstance(array, np.ndarray) else array
        shape = values.shape[::-1] if reverse else values.shape
        strides, step = [], 1
        for nth, size in enumerate(reversed(shape)):
            strides.append(step)
            step *= size + (_GAP if nth == 0 else 1)
        strides = strides if reverse else strides[::-1]
        extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
        buffer = torch.full((2 * _MARGIN + max(extent, 0),), torch.nan, dtype=values.dtype, device=self.device)
        inside = buffer.as_strided(values.shape, strides, _MARGIN).copy_(values)
        self.held.append((buffer, buffer.clone(), inside))
        return inside

    def is_untouched(self) -> bool:
        return all(torch.equal(_bits(buffer), _bits(before)) for buffer, before, _ in self.held)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)
