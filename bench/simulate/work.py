"""What operations have to do: floating-point operations, and bytes that must be read and written."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_OWN = {
    # a fused kernel like those that have a formula, with the same leading arguments
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],  # noqa: SLF001
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[  # noqa: SLF001
        _aten._scaled_dot_product_flash_attention_backward  # noqa: SLF001
    ],
}
FLOPS = ChainMap(_OWN, flop_registry)  # looked up anew each time: operators may register later
_LOOK_UPS = {_aten.embedding: 0, _aten.index_select: 0, _aten.gather: 0}  # of this argument only what comes out is read
_UNWRITTEN = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided}


class Piece(NamedTuple):
    """One operation: its FLOPs, the bytes that it moves, and the dtype that it computes in."""

    flops: int
    nbytes: int
    dtype: torch.dtype


class Work(TorchDispatchMode):
    """Collects every operation dispatched in the ``with`` block; values are not looked at, so fake tensors will do.

    FLOPs follow ``torch.utils.flop_counter``'s formulas: a multiply and an add are two, products and attention count
    and nothing else does, and causal attention counts in full. Bytes are those of each distinct tensor read and of each
    written, once per operation; a view moves none, and a tensor that is changed in place is both read and written.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pieces: Counter[Piece] = Counter()

    @property
    def flops(self) -> int:
        return sum(piece.flops * times for piece, times in self.pieces.items())

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes * times for piece, times in self.pieces.items())

    @property
    def n_ops(self) -> int:
        """Operations dispatched, views included."""
        return self.pieces.total()

    def __enter__(self) -> Self:
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":  # questions such as prim.device, which fake tensors ask and real ones do not
            return out
        formula = FLOPS.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        self.pieces[Piece(flops, _moved(func, args, kwargs, out), _dtype(out, args))] += 1
        return out


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    given = {_place(tensor): tensor for tensor in _tensors((args, kwargs))}
    storages = {place[0] for place in given}
    made = [tensor for tensor in _tensors(out) if tensor.untyped_storage()._cdata not in storages]  # noqa: SLF001
    packet, changes = func.overloadpacket, func._schema.is_mutable  # noqa: SLF001 - no public name
    if packet in _UNWRITTEN or not (made or changes):
        return 0  # nothing, or a view
    written = sum(map(_nbytes, made))
    if packet in _LOOK_UPS:
        return 2 * written
    read = sum(map(_nbytes, given.values()))
    if changes:
        values = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}  # noqa: SLF001
        for argument in func._schema.arguments:  # noqa: SLF001
            if argument.is_write:
                written += sum(map(_nbytes, _tensors(values.get(argument.name))))
    return read + written


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (value for value in tree_iter(tree) if isinstance(value, Tensor))


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The storage first, then what of it."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()  # noqa: SLF001


def _nbytes(tensor: Tensor) -> int:
    """Of the elements in memory: those that were expanded lie there once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _dtype(*trees: Any) -> torch.dtype:
    """Of the first floating-point tensor that comes out, or goes in."""
    return next((t.dtype for tree in trees for t in _tensors(tree) if t.dtype.is_floating_point), torch.float32)
