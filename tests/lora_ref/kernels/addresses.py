"""Whatever an interpreted kernel reads or writes must be an element of one of its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor


@contextmanager
def checked() -> Iterator[None]:
    """On a GPU nothing is checked: NaN around the operands must do there."""
    from triton.runtime import interpreter

    from lora_ref.fused.kernels.launch import Kernel, is_interpreted

    if not is_interpreted():
        yield
        return
    inside, call, real = np.zeros(0, np.uint64), Kernel.__call__, interpreter._interpreter  # of the kernel that runs

    def start(kernel: Any, grid: Any, kind: str, **arguments: Any) -> None:
        nonlocal inside
        tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
        inside = np.unique(np.concatenate([_elements(tensor) for tensor in tensors]))
        call(kernel, grid, kind, **arguments)

    def check(pointers: Any, mask: Any) -> None:
        touched = np.asarray(pointers)[np.asarray(mask)].astype(np.uint64)
        assert np.isin(touched, inside).all(), "an address that is no element of any argument"

    def load(pointers: Any, mask: Any, *more: Any) -> Any:
        check(pointers, mask)
        return real.load(pointers, mask, *more)

    def store(pointers: Any, values: Any, mask: Any) -> Any:
        check(pointers, mask)
        return real.store(pointers, values, mask)

    with (
        patch.object(Kernel, "__call__", start),
        patch.object(interpreter, "_interpreter", SimpleNamespace(load=load, store=store)),
    ):
        yield


def _elements(tensor: Tensor) -> Any:
    """The address of each."""
    at = np.full((), tensor.data_ptr(), np.uint64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        at = at[..., None] + np.arange(size, dtype=np.uint64) * np.uint64(stride * tensor.element_size())
    return at.ravel()
