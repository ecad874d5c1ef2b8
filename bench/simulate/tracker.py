"""Who holds memory, and who held it at the peak: every storage followed from its first use to its death.

A storage is seen when a dispatched operation takes or gives a tensor of it, and a weak reference tells when it dies, so
the same tracker follows a real run and one under ``FakeTensorMode``, where nothing is allocated. Each storage counts
with its size rounded up to 512 bytes, as CUDA's caching allocator hands out memory ("c10/cuda/CUDACachingAllocator.h",
kMinBlockSize); what the allocator keeps cached or loses to fragmentation comes on top, and so does what a kernel
allocates inside itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

BLOCK = 512  # bytes


class Category(StrEnum):
    """What a storage is for. It has one category for its whole life, whenever that was found out.

    Activations are what was made in a forward and still lives when its backward begins, and what a checkpoint makes
    anew inside a backward, with the passing values of that second forward. A gradient is one from the moment its memory
    is taken, before it becomes a ``grad``. Temporary is the rest: passing values of a forward, of a backward or of the
    optimiser.
    """

    PARAMETERS = "parameters"  # and buffers
    GRADIENTS = "gradients"
    OPTIMISER = "optimiser"
    ACTIVATIONS = "activations"
    TEMPORARY = "temporary"
    INPUTS = "inputs"  # the batch, and any tensor made before the tracker was entered that belongs nowhere else


@dataclass(slots=True, eq=False)
class Allocation:
    """Alive at time t if ``born <= t < died``; time counts births and deaths."""

    nbytes: int
    category: Category
    born: int
    died: float = float("inf")


class Tracker(TorchDispatchMode):
    """Follows all memory that operations touch inside the ``with`` block.

    Enter it inside a ``FakeTensorMode``, if there is one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._time = 0
        self._peak_time = 0
        self._allocations: list[Allocation] = []
        self._live: dict[int, tuple[weakref.ref[Any], Allocation]] = {}  # by the address of the storage's C++ object
        self._hooks: list[Any] = []

    def hold(self, category: Category, tensors: Iterable[Tensor]) -> None:
        """Count these, and whatever else lies in their storages, under ``category``."""
        for tensor in tensors:
            self._see(tensor, category).category = category

    def watch(self, leaves: Iterable[Tensor]) -> None:
        """What becomes the ``grad`` of one of these leaves counts as a gradient, until the tracker is left."""
        for leaf in leaves:
            self._hooks.append(leaf.register_post_accumulate_grad_hook(self._accumulated))  # type: ignore[no-untyped-call]

    def forward_ended(self) -> None:
        """The passing values that still live are no passing values: they are what the backward needs."""
        for _, allocation in self._live.values():
            if allocation.category is Category.TEMPORARY:
                allocation.category = Category.ACTIVATIONS

    def at_peak(self) -> Mapping[Category, int]:
        """Bytes by category at the time of the peak; their sum is ``peak``."""
        found = dict.fromkeys(Category, 0)
        for allocation in self._allocations:
            if allocation.born <= self._peak_time < allocation.died:
                found[allocation.category] += allocation.nbytes
        return found

    def now(self) -> Mapping[Category, int]:
        """Bytes by category now; their sum is ``current``."""
        found = dict.fromkeys(Category, 0)
        for _, allocation in self._live.values():
            found[allocation.category] += allocation.nbytes
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a question, such as on which device a fake tensor pretends to be
            return func(*args, **kwargs)
        for value in tree_iter((args, kwargs)):
            if isinstance(value, Tensor):
                self._see(value, Category.INPUTS)
        out = func(*args, **kwargs)
        category = Category.ACTIVATIONS if _recomputing() else Category.TEMPORARY
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._see(value, category)
        return out

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Self:
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def _see(self, tensor: Tensor, category: Category) -> Allocation:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK  # noqa: SLF001 - fake ones have no address
        if key in self._live:
            allocation = self._live[key][1]
            if allocation.nbytes == nbytes:
                return allocation
            category = allocation.category
            self._freed(key)  # resized: the old memory went
        allocation = Allocation(nbytes, category, self._time)
        self._live[key] = weakref.ref(storage, partial(_died, weakref.ref(self), key)), allocation
        self._allocations.append(allocation)
        self.current += nbytes
        if self.current > self.peak:
            self.peak, self._peak_time = self.current, self._time
        self._time += 1
        return allocation

    def _freed(self, key: int) -> None:
        _, allocation = self._live.pop(key)
        allocation.died = self._time
        self.current -= allocation.nbytes
        self._time += 1

    def _accumulated(self, leaf: Tensor) -> None:
        if leaf.grad is not None:
            self.hold(Category.GRADIENTS, [leaf.grad])


def _died(tracker: weakref.ref[Tracker], key: int, reference: weakref.ref[Any]) -> None:
    """Called when a storage dies; its address may belong to another one by now, if it was resized or seen late."""
    owner = tracker()
    if owner is not None and owner._live.get(key, (None,))[0] is reference:  # noqa: SLF001 - its own
        owner._freed(key)  # noqa: SLF001


def _recomputing() -> bool:
    """A backward runs without recording a graph, unless it runs a forward again: inside it, a checkpoint's."""
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()  # noqa: SLF001
