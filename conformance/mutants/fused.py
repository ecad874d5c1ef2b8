"""Several projections in one weight: deltas that land in the wrong rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.mutants.mutant import mutant
from lora_ref.delta import FusedDelta

SLICES = ["fused-slice-map"]


@mutant("gate-without-up", killed_by=SLICES, thread="sgl-project/sglang#3652, #3413")
class AbsentPartsSkipped(FusedDelta):
    """Only the parts that are present are stacked, so that what follows an absent one moves up."""

    def _blocks(self, b: Tensor) -> Tensor:
        blocks = super()._blocks(b)
        present = torch.tensor([on for rows, on in zip(self.parts, self.enabled, strict=True) for _ in range(rows)])
        return torch.cat([blocks[present], blocks[~present]])


@mutant("fused-equal-parts-assumed", killed_by=SLICES, thread="sgl-project/sglang#24239")
class EqualPartsAssumed(FusedDelta):
    """Each part begins at a multiple of the same size, which grouped-query attention does not have."""

    def _blocks(self, b: Tensor) -> Tensor:
        parts = torch.split(super()._blocks(b), list(self.parts))
        step = sum(self.parts) // len(self.parts)
        starts = [min(nth * step, sum(self.parts) - rows) for nth, rows in enumerate(self.parts)]
        padded = [
            F.pad(part, (0, 0, at, sum(self.parts) - at - len(part))) for at, part in zip(starts, parts, strict=True)
        ]
        return torch.stack(padded).sum(0)


@mutant("fused-parts-reversed", killed_by=SLICES)
class PartsReversed(FusedDelta):
    """The parts are stacked in the reverse order."""

    def _blocks(self, b: Tensor) -> Tensor:
        return torch.cat(torch.split(super()._blocks(b), list(self.parts))[::-1])


@mutant("fused-a-of-first-part", killed_by=SLICES)
class FirstPartsA(FusedDelta):
    """All parts read the first part's A."""

    def _branch(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.a[: self.spec.r])
        return F.linear(hidden.repeat(*(1 for _ in x.shape[:-1]), sum(self.enabled)), self._blocks(self.b))


@mutant("fused-delta-in-all-parts", killed_by=SLICES)
class AllPartsAdapted(FusedDelta):
    """A single adapted part also changes the first row of its neighbour."""

    def _blocks(self, b: Tensor) -> Tensor:
        blocks = super()._blocks(b)
        return blocks if sum(self.enabled) > 1 else blocks + blocks.roll(self.parts[self.enabled.index(True)], 0)


@mutant("fused-last-part-lost", killed_by=SLICES)
class LastPartLost(FusedDelta):
    """Of three adapted parts the last is forgotten."""

    def _blocks(self, b: Tensor) -> Tensor:
        blocks = super()._blocks(b)
        if sum(self.enabled) < 3:
            return blocks
        return torch.cat([blocks[: -self.parts[-1]], 0 * blocks[-self.parts[-1] :]])


@mutant("merge-fails-on-subset-qkv", killed_by=["merge-delta-oracle"], thread="Lightning-AI/litgpt#629")
class MergeNeedsTwoParts(FusedDelta):
    """Merging pads with zeros as if exactly two parts were adapted."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        if sum(self.enabled) != 2:
            raise RuntimeError("the parts do not add up to the rows of the weight")
        return super()._product(a, b)


@mutant("fused-merge-first-part-only", killed_by=["merge-delta-oracle"])
class MergeFirstPartOnly(FusedDelta):
    """Merging adds the first adapted part only; forward has them all."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        first = torch.zeros_like(b)
        rows = self.parts[self.enabled.index(True)]
        first[:rows] = b[:rows]
        return super()._product(a, first)
