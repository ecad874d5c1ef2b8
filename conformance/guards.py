"""Memory that tells on its users: NaN around every tensor, in what was never written, and in what was given back.

While ``guarded`` is on, tensors that cross the border into torch lie inside larger buffers of NaN, with gaps between
their rows; ``torch.empty`` gives NaN; and outputs can be overwritten with NaN, as their owner may do. Reading beside a
tensor, or before writing, then shows in the result, and writing beside one shows in the buffer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from conformance.violation import must

_MARGIN, _GAP = 67, 3  # elements; odd, so that nothing is aligned by accident
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Held:
    what: str
    buffer: Tensor  # flat
    before: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, flat: Tensor) -> Tensor:
        return flat.as_strided(self.shape, self.strides, _MARGIN)


@dataclass
class Guards:
    held: list[_Held] = field(default_factory=list)
    outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # what was given back, and a copy

    def place(self, tensor: Tensor, what: str, *, gaps: bool = True) -> Tensor:
        """The same values inside a buffer of NaN (of the lowest integer, for ids); ``gaps`` also between rows."""
        strides = _spread(tensor) if gaps and tensor.dim() > 1 and tensor.is_contiguous() else tensor.stride()
        extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
        poison = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min
        buffer = torch.full((2 * _MARGIN + max(extent, 0),), poison, dtype=tensor.dtype)
        inside = buffer.as_strided(tensor.shape, strides, _MARGIN).copy_(tensor)
        self.held.append(_Held(what, buffer, buffer.clone(), tuple(tensor.shape), tuple(strides)))
        return inside

    def must_hold(self, when: str, *, inside: bool = True) -> None:
        """Nothing was written: not beside any tensor and, with ``inside``, not to the tensors themselves.

        Raises:
            Violation: a buffer has other bits than it was given.
        """
        for held in self.held:
            now = held.buffer.clone()
            if not inside:
                held.view(now).copy_(held.view(held.before))
            kept = torch.equal(_bits(now), _bits(held.before))
            must(kept, f"memory of {held.what} and beside it {when}", "what it was", "other bits")

    def must_keep_outputs(self, when: str) -> None:
        """What was given back earlier still has its values; then its owner overwrites it."""
        for output, copy in self.outputs:
            must(torch.equal(_bits(output), _bits(copy)), f"an earlier output {when}", "what it was", "other bits")
            output.fill_(float("nan"))
        self.outputs.clear()


_ACTIVE: ContextVar[Guards | None] = ContextVar("guards", default=None)


def active() -> Guards | None:
    return _ACTIVE.get()


@contextmanager
def guarded() -> Iterator[Guards]:
    guards = Guards()
    token, strict = _ACTIVE.set(guards), torch.are_deterministic_algorithms_enabled()
    lenient, fill = torch.is_deterministic_algorithms_warn_only_enabled(), _fills_empty()
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    _fill_empty(on=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield guards
    finally:
        _ACTIVE.reset(token)
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        _fill_empty(on=fill)


def placed(tensor: Tensor, what: str, *, gaps: bool = True) -> Tensor:
    guards = active()
    return tensor if guards is None else guards.place(tensor, what, gaps=gaps)


def given_back(tensor: Tensor) -> Tensor:
    guards = active()
    if guards is not None:
        guards.outputs.append((tensor.detach(), tensor.detach().clone()))
    return tensor


def _spread(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a contiguous tensor whose rows are ``_GAP`` elements longer."""
    strides = [1]
    for size in (tensor.shape[-1] + _GAP, *reversed(tensor.shape[1:-1])):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_INTEGER[tensor.element_size()])


def _fills_empty() -> bool:
    fills: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return fills


def _fill_empty(*, on: bool) -> None:
    torch.utils.deterministic.fill_uninitialized_memory = on  # type: ignore[attr-defined]
