"""Layers that lose their dtype, or their function, in a mixed-precision region."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import Adapters, LoraLayer

_KILLED_BY = ["autocast-parity"]


def _inside() -> bool:
    return torch.is_autocast_enabled("cpu")


@mutant("autocast-not-cast-back", killed_by=_KILLED_BY, thread="huggingface/peft#971")
class NotCastBack(Adapters):
    """The sum of base and delta is not cast back to the base output's dtype: float32 comes out of the region."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        total = super().add_to(out.float(), x, names, plain)
        return total if _inside() else total.to(out.dtype)


@mutant("fused-under-autocast", killed_by=_KILLED_BY, thread="unslothai/unsloth#5766, unslothai/unsloth#7020")
class TakesDtypeOfInput(LoraLayer):
    """A fused operation takes its dtype from x, which autocast leaves at float32, and returns that."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.to(x.dtype) if x.is_floating_point() else out


@mutant("fused-refuses-other-dtype", killed_by=_KILLED_BY, thread="unslothai/unsloth#5766, unslothai/unsloth#7020")
class MultipliesAsItIs(LinearDelta):
    """A fused kernel multiplies x, A and B as they are, so that an x of another dtype is an error inside the region."""

    def _dropped(self, x: Tensor) -> Tensor:
        return x if _inside() else super()._dropped(x)

    def _branch(self, x: Tensor) -> Tensor:
        if not _inside():
            return super()._branch(x)
        with torch.autocast("cpu", enabled=False):
            return super()._branch(x)


@mutant("quant-buffer-dtype", killed_by=_KILLED_BY, thread="unslothai/unsloth#4005, unslothai/unsloth#4918")
class BufferKeepsDtype(LoraLayer):
    """The output goes through a buffer whose dtype is that of the first call."""

    first: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.first = self.first or out.dtype
        return out.to(self.first)


@mutant("autocast-cache-keeps-casts", killed_by=_KILLED_BY, thread="unslothai/unsloth#7020")
class KeepsCasts(LinearDelta):
    """A and B are cast for the region once, and what that gave is used outside of it too."""

    cast: tuple[Tensor, Tensor] | None = None

    def _branch(self, x: Tensor) -> Tensor:
        if _inside():
            self.cast = self.a.bfloat16(), self.b.bfloat16()
        if self.cast is None:
            return super()._branch(x)
        a, b = (factor.to(x.dtype) for factor in self.cast)
        return F.linear(F.linear(x, a), b)


@mutant("autocast-result-cached", killed_by=_KILLED_BY)
class ResultCached(LinearDelta):
    """A product that was computed outside the region is used in it for an equal input, without its gradients."""

    seen: Tensor | None = None

    def _branch(self, x: Tensor) -> Tensor:
        if not _inside():
            out = super()._branch(x)
            self.seen = out.detach()
            return out
        return super()._branch(x) if self.seen is None else self.seen


@mutant("autocast-skips-delta", killed_by=_KILLED_BY)
class SkipsDelta(Adapters):
    """In the region only the base is computed."""

    def applied(self) -> tuple[str, ...]:
        return () if _inside() else super().applied()


@mutant("autocast-delta-in-eight-bits", killed_by=_KILLED_BY)
class EightBitsOnTheWay(LinearDelta):
    """In the region the delta passes through a dtype of eight bits."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        return out.to(torch.float8_e4m3fn).to(out.dtype) if _inside() else out


@mutant("autocast-embedding-narrowed", killed_by=_KILLED_BY)
class LookupNarrowed(LoraLayer):
    """What an embedding looks up is narrowed to the region's dtype, which the bare one leaves alone."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.bfloat16() if _inside() else out


@mutant("autocast-scales-twice", killed_by=_KILLED_BY)
class ScaleTwiceInRegion(Delta):
    """In the region s is applied by the kernel and by its caller."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return self.scaling * delta if _inside() else delta


@mutant("autocast-merge-narrowed", killed_by=_KILLED_BY, on=Facet.MODEL)
class MergeInRegion(Delta):
    """A merge inside the region forms the delta in bfloat16, for a weight in float32 that it never leaves again."""

    def weight(self) -> Tensor:
        return self.scaling * self._product(self.a, self.b)
