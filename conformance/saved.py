"""What autograd keeps between a forward and its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Tensor], owned: Iterable[Tensor]) -> int:
    """Bytes of all memory that the graph of ``forward()`` keeps, each once, without that of the tensors ``owned``.

    A view keeps all of the memory behind it. Tensors that a custom function stores on its context count as well.
    """
    kept: list[torch.UntypedStorage] = []  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward()
    kept += [tensor.untyped_storage() for tensor in _on_contexts(y)]
    free = {_identity(tensor.untyped_storage()) for tensor in owned}
    sizes = {_identity(storage): storage.nbytes() for storage in kept}
    return sum(size for identity, size in sizes.items() if identity not in free)


def _identity(storage: torch.UntypedStorage) -> int:
    """The address of the storage itself, not of its memory: a fake tensor's storage has none."""
    address: int = storage._cdata  # noqa: SLF001 - no public name
    return address


def _on_contexts(y: Tensor) -> Iterator[Tensor]:
    """Tensors among the attributes of the graph's Python functions."""
    todo: list[Any] = [y.grad_fn]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        if hasattr(node, "__dict__"):
            yield from _tensors(vars(node).values())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
