"""Which adapter serves which row, and adapters stacked so that one kernel reads them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lora_ref.errors import LoraError


@dataclass(frozen=True)
class Routing:
    """Rows grouped by adapter: made once for a batch, used by every layer.

    order (M,) int32: the rows, those of no adapter first, then those of adapter 0, 1, ..., each group in its own order.
    starts (adapters + 2,) int32: where in ``order`` the rows of no adapter, of adapter 0, 1, ... begin; then M.
    """

    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, index: Sequence[int] | Tensor, adapters: int, device: torch.device | str = "cpu") -> Self:
        """index (M,): the adapter of each row, -1 for none. An index on a GPU is checked, so this waits for the GPU.

        Raises:
            LoraError: an index that names no adapter.
        """
        own = torch.as_tensor(index, dtype=torch.int32).reshape(-1)
        if own.numel():
            least, most = (int(bound) for bound in own.aminmax())
            if least < -1 or most >= adapters:
                wrong = least if least < -1 else most
                raise LoraError(f"there is no adapter {wrong}; there are {adapters}, and -1 is the base alone")
        grouped, order = own.to(device).sort(stable=True)
        edges = torch.arange(-1, adapters + 1, dtype=torch.int32, device=device)
        return cls(order.to(torch.int32), torch.searchsorted(grouped, edges, out_int32=True))


@dataclass(frozen=True)
class Stacked:
    """Adapters of one layer side by side; what lies beyond an adapter's own rank is never read.

    a (adapters, r_max, in), b (adapters, out, r_max), ranks (adapters,) int32, scalings (adapters,) float32.
    """

    a: Tensor
    b: Tensor
    ranks: Tensor
    scalings: Tensor

    @classmethod
    def of(cls, adapters: Sequence[tuple[Tensor, Tensor, float]]) -> Self:
        """A (r, in), B (out, r) and s of each; ranks may differ. Copies, filled up with zeros.

        Raises:
            LoraError: there are none, so shapes are unknown; or they are not of one layer.
        """
        if not adapters:
            raise LoraError("no adapters to stack; for none, make a Stacked of tensors with a first axis of 0")
        like_a, like_b, _ = adapters[0]
        most, n = max(a.shape[0] for a, _, _ in adapters), len(adapters)
        stacked_a = like_a.new_zeros(n, most, like_a.shape[1])
        stacked_b = like_b.new_zeros(n, like_b.shape[0], most)
        for nth, (a, b, _) in enumerate(adapters):
            r, same = a.shape[0], (a.shape[1], b.shape[0]) == (like_a.shape[1], like_b.shape[0])
            if not same or b.shape[1] != r or {a.dtype, b.dtype} != {like_a.dtype}:
                raise LoraError(f"adapter {nth} has A {tuple(a.shape)} and B {tuple(b.shape)}, unlike adapter 0")
            stacked_a[nth, :r], stacked_b[nth, :, :r] = a, b
        ranks = torch.tensor([a.shape[0] for a, _, _ in adapters], dtype=torch.int32, device=like_a.device)
        scalings = torch.tensor([s for _, _, s in adapters], dtype=torch.float32, device=like_a.device)
        return cls(stacked_a, stacked_b, ranks, scalings)
