"""In which dtypes a layer computes: those of its tensors, or the one of an autocast region."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def region(x: Tensor) -> torch.dtype | None:
    """The dtype that an autocast region around the call asks for; float64 is left alone, as autocast does."""
    device = x.device.type
    if x.dtype == torch.float64 or not _autocasts(device):
        return None
    return torch.get_autocast_dtype(device)


def no_region(device: str) -> AbstractContextManager[object]:
    """Within it an autocast region has no say: torch computes in the dtypes that it is given."""
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Forward or backward of a function, within ``no_region``; a call outside of any costs nothing more."""

    @wraps(function)
    def run(ctx: Any, first: Tensor, *others: Any) -> Any:
        device = first.device.type
        if not _autocasts(device):
            return function(ctx, first, *others)
        with no_region(device):
            return function(ctx, first, *others)

    return run


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def kept(x: Tensor, x_low: Tensor) -> Tensor:
    """The one that costs less to keep: x itself costs nothing, unless it is wider than what is computed with."""
    return x if x is x_low or x.element_size() <= x_low.element_size() else x_low


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)
