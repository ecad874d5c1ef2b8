"""Mixed batches whose rows do not all get their own adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.backends.reference import FEATURES
from conformance.contract import Array, Backend, Manifest, Weights
from conformance.guards import given_back
from conformance.mutants.mutant import MUTANTS, Mutant
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref.geometry import Linear
from lora_ref.routing import Routed
from lora_ref.spec import LoraSpec

Serve = Callable[[Tensor, Tensor, Sequence[Routed], list[int]], Tensor]


class BrokenBatch:
    """``serve`` gives all rows, from the base's output, x, the adapters and the index."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve

    def forward(
        self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]], x: Array, index: Sequence[int]
    ) -> Array:
        assert isinstance(weights.geometry, Linear)
        w = to_torch(weights.w).T if weights.geometry.transposed else to_torch(weights.w)
        rows = to_torch(x)
        base = F.linear(rows, w, None if weights.bias is None else to_torch(weights.bias))
        routed = [(to_torch(a), to_torch(b), replace(spec, r=a.shape[0]).scaling) for a, b in adapters]
        return to_numpy(given_back(self.serve(base, rows, routed, [*index])))


def routed(id: str, *, thread: str = "", killed_by: str = "row-routing", **manifest: Any) -> Callable[[Serve], Serve]:  # noqa: A002
    """Register the decorated function."""

    def register(serve: Serve) -> Serve:
        fields = {"dtypes": ("float32",), "features": FEATURES, **manifest}
        backend = Backend(Manifest(name=f"mutant:{id}", version="0", **fields), batch=BrokenBatch(serve))
        if id in MUTANTS:
            raise ValueError(f"mutant {id!r} needs an id of its own")
        MUTANTS[id] = Mutant(id, " ".join((serve.__doc__ or "").split()), thread, (killed_by,), backend)
        return serve

    return register


def check(index: list[int], adapters: Sequence[Routed]) -> None:
    if any(not -1 <= nth < len(adapters) for nth in index):
        raise IndexError("no such adapter")


def delta(x: Tensor, adapter: Routed) -> Tensor:
    a, b, s = adapter
    return s * F.linear(F.linear(x, a), b)


def by_row(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    rows = [y if nth == -1 else y + delta(row, adapters[nth]) for y, row, nth in zip(base, x, index, strict=True)]
    return torch.stack(rows) if rows else base


@routed("unknown-adapter-name-is-base", thread="huggingface/peft#2090")
def unknown_is_base(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """A row whose adapter is unknown gets the base's output."""
    return by_row(base, x, adapters, [nth if nth < len(adapters) and nth >= 0 else -1 for nth in index])


@routed("unknown-adapter-wraps-around")
def wraps_around(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """An index beyond the last adapter starts again with the first."""
    return by_row(base, x, adapters, [nth if nth == -1 else nth % len(adapters) for nth in index])


@routed("no-adapter-is-last-adapter")
def none_is_last(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """-1 is taken as an index from the end: rows without an adapter get the last one's delta."""
    check(index, adapters)
    return by_row(base, x, adapters, [nth % len(adapters) for nth in index])


@routed("no-adapter-is-first-adapter")
def none_is_first(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """-1 is clamped to 0: rows without an adapter get the first one's delta."""
    check(index, adapters)
    return by_row(base, x, adapters, [max(nth, 0) for nth in index])


@routed("no-adapter-is-zero-output")
def none_is_zero(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Rows without an adapter are left out, and their output stays zero."""
    check(index, adapters)
    y = by_row(base, x, adapters, index)
    return y * (torch.tensor(index, dtype=torch.int64).reshape(-1, 1) >= 0)


@routed("batch-slot0-for-everyone", thread="sgl-project/sglang#28091")
def slot0(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Above sixteen rows a fast path serves all of them with the first adapter."""
    check(index, adapters)
    fast = len(index) > 16
    return by_row(base, x, adapters, [min(nth, 0) for nth in index] if fast else index)


@routed("batch-slot0-scaling-for-everyone", thread="sgl-project/sglang#28091")
def slot0_scaling(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Each row gets its own A and B, and the first adapter's scaling."""
    check(index, adapters)
    return by_row(base, x, [(a, b, adapters[0][2]) for a, b, _ in adapters], index)


@routed("first-row-decides-for-block")
def block_of_rows(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Sixteen rows are one block, and the adapter of its first row serves them all."""
    check(index, adapters)
    return by_row(base, x, adapters, [index[nth // 16 * 16] for nth in range(len(index))])


@routed("sorted-rows-not-sorted-back")
def not_sorted_back(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Rows are grouped by adapter for the product, and given back in that order."""
    check(index, adapters)
    order = sorted(range(len(index)), key=index.__getitem__)
    return by_row(base[order], x[order], adapters, [index[nth] for nth in order])


@routed("deltas-not-sorted-back")
def deltas_not_sorted_back(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """The base's output is in the order of the rows, the deltas in that of the adapters."""
    check(index, adapters)
    order = sorted(range(len(index)), key=index.__getitem__)
    return base + (by_row(base[order], x[order], adapters, [index[nth] for nth in order]) - base[order])


@routed("batch-without-adapters-div", thread="sgl-project/sglang#7785")
def division(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """The grid is divided by the number of rows with an adapter, of which there may be none."""
    check(index, adapters)
    served = sum(nth >= 0 for nth in index)
    return by_row(base, x, adapters, index) + 0.0 * (len(index) // served)


_MAP: dict[str, list[int]] = {"index": []}


@routed("embedding-subset-metadata", thread="vllm-project/vllm#51121, #51122")
def subset_metadata(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """The map of rows to adapters is that of the whole batch, also where some of the rows are asked for."""
    check(index, adapters)
    if len(index) >= len(_MAP["index"]) or any(nth >= len(adapters) for nth in _MAP["index"]):
        _MAP["index"] = index
    return by_row(base, x, adapters, _MAP["index"][: len(index)])


@routed("rank-tail-of-previous-adapter", thread="sgl-project/sglang#27087")
def rank_tail(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """One buffer has room for the largest rank; a smaller adapter leaves the tail of the one before it there."""
    check(index, adapters)
    most = max(a.shape[0] for a, _, _ in adapters)
    buffer_a, buffer_b = x.new_zeros(most, x.shape[1]), x.new_zeros(base.shape[1], most)
    served: list[Routed] = []
    for a, b, s in adapters:
        buffer_a[: a.shape[0]] = a
        buffer_b[:, : a.shape[0]] = b
        served.append((buffer_a.clone(), buffer_b.clone(), s))
    return by_row(base, x, served, index)


@routed("ranks-cut-to-smallest")
def ranks_cut(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Adapters are stacked at the smallest rank among them."""
    check(index, adapters)
    least = min(a.shape[0] for a, _, _ in adapters)
    return by_row(base, x, [(a[:least], b[:, :least], s) for a, b, s in adapters], index)


@routed("one-row-per-adapter")
def one_row(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Only the first row of each adapter is served."""
    check(index, adapters)
    return by_row(base, x, adapters, [nth if index.index(nth) == row else -1 for row, nth in enumerate(index)])


@routed("last-odd-row-dropped")
def odd_row(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Rows are served in pairs; the last one of an odd number is not."""
    check(index, adapters)
    even = len(index) // 2 * 2
    return by_row(base, x, adapters, index[:even] + [-1] * (len(index) - even))


@routed("mixed-batch-in-float32", dtypes=("bfloat16",))
def wide_output(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """The output of a mixed batch has the dtype in which it was summed."""
    check(index, adapters)
    return by_row(base, x, adapters, index).float()


@routed("batch-tail-read", killed_by="memory-safe")
def batch_tail(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """One row more than there are is read, and multiplied with zero."""
    check(index, adapters)
    room = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    rows, columns = x.shape
    tail = x.new_zeros(columns)
    if rows and room >= rows * x.stride(0) + columns:
        tail = x.as_strided((columns,), (x.stride(1),), x.storage_offset() + rows * x.stride(0))
    return by_row(base, x, adapters, index) + 0.0 * tail.sum()


@routed("batch-writes-to-x", killed_by="memory-safe")
def batch_writes(base: Tensor, x: Tensor, adapters: Sequence[Routed], index: list[int]) -> Tensor:
    """Rows without an adapter are cleared in x once they are done."""
    check(index, adapters)
    y = by_row(base, x, adapters, index)
    for row, nth in enumerate(index):
        if nth == -1:
            x[row].zero_()
    return y
