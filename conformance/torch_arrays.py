"""Numpy arrays to torch tensors and back, with dtype and strides kept; always a copy, never a view."""

from __future__ import annotations

import numpy as np
import torch

from conformance.contract import Array, dtype_of
from conformance.guards import placed


def to_torch(array: Array) -> torch.Tensor:
    """A tensor of the same values, dtype and strides. Broadcast axes (stride 0) stay broadcast."""
    core = array[tuple(slice(0, 1) if n > 1 and not stride else slice(None) for n, stride in _axes(array))]
    strides = [max(0, stride // array.itemsize) for stride in core.strides]
    values = np.ascontiguousarray(core).reshape(core.shape).copy()
    if values.dtype.name == "bfloat16":
        source = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    else:
        source = torch.from_numpy(values)
    tensor = torch.empty_strided(core.shape, strides, dtype=source.dtype)
    return placed(tensor.copy_(source), f"an array of shape {array.shape}").expand(array.shape)


def to_numpy(tensor: torch.Tensor) -> Array:
    """A copy of the tensor's values in its own dtype."""
    tensor = tensor.detach().cpu().contiguous().clone()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtype_of("bfloat16"))
    return tensor.numpy()


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _axes(array: Array) -> list[tuple[int, int]]:
    return list(zip(array.shape, array.strides, strict=True))
