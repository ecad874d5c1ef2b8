"""In which dtypes a layer computes: those of its tensors, or the one of an autocast region."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def region(x: Tensor) -> torch.dtype | None:
    """The dtype that an autocast region around the call asks for; float64 is left alone, as autocast does."""
    device = x.device.type
    if x.dtype == torch.float64 or not _autocasts(device):
        return None
    return torch.get_autocast_dtype(device)


def as_written(x: Tensor) -> AbstractContextManager[object]:
    """Within it torch computes in the dtypes that it is given: an autocast region has no say."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)
