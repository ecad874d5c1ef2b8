"""Stacks of experts: rows that meet another expert's factors, and experts that get what is not theirs."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import on_gradient
from lora_ref.expert_delta import ExpertDelta
from lora_ref.expert_stack import by_expert

ROWS = ["expert-row-map"]
MERGES = ["merge-delta-oracle", "merge-equivalence"]
LAW = {"experts": "kaiming_uniform_a5"}


def counts(delta: ExpertDelta) -> Tensor:
    """How many rows each expert has (E,)."""
    return torch.bincount(delta.index, minlength=len(delta.a))


@mutant("expert-reads-neighbours-a", killed_by=ROWS)
class NeighboursA(ExpertDelta):
    """Each expert reads the A of the one before it."""

    def _branch(self, x: Tensor) -> Tensor:
        return by_expert(by_expert(x, self.index, self.a.roll(1, 0)), self.index, self.b)


@mutant("expert-deltas-not-sorted-back", killed_by=ROWS)
class NotSortedBack(ExpertDelta):
    """Rows are grouped by expert for the product, and their deltas are given back in that order."""

    def _branch(self, x: Tensor) -> Tensor:
        delta = super()._branch(x)  # (..., out)
        order = self.index.argsort(stable=True)  # (M,)
        return delta.reshape(len(order), self.b.shape[1])[order].reshape(delta.shape)


@mutant("experts-beyond-capacity", killed_by=ROWS)
class BeyondCapacity(ExpertDelta):
    """An expert's branch has room for one row; the others that are sent to it get the base's output."""

    def _branch(self, x: Tensor) -> Tensor:
        nth = torch.tril(self.index[:, None] == self.index).sum(1)  # (M,): the row's place among those of its expert
        return super()._branch(x) * (nth == 1).reshape(*x.shape[:-1], 1)


@mutant("last-expert-not-adapted", killed_by=[*ROWS, "merge-delta-oracle"], thread="unslothai/unsloth#11014")
class LastExpertDropped(ExpertDelta):
    """Of several experts the last is never adapted."""

    def _adapted(self, b: Tensor) -> Tensor:
        others = torch.arange(len(b)) < max(1, len(b) - 1)
        return b * others[:, None, None]  # (E, out, r)

    def _branch(self, x: Tensor) -> Tensor:
        return by_expert(by_expert(x, self.index, self.a), self.index, self._adapted(self.b))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return super()._product(a, self._adapted(b))


@mutant("experts-after-idle-one-skipped", killed_by=ROWS)
class LoopEndsEarly(ExpertDelta):
    """The loop over the experts ends at the first one without rows, and those behind it add nothing."""

    def _branch(self, x: Tensor) -> Tensor:
        reached = (counts(self) > 0).cumprod(0)  # (E,)
        return super()._branch(x) * reached[self.index].reshape(*x.shape[:-1], 1)


@mutant("idle-expert-gets-nan", killed_by=ROWS)
class IdleExpertNan(ExpertDelta):
    """A's gradient is a mean over the expert's rows times their number: 0/0 for an expert that has none."""

    def _branch(self, x: Tensor) -> Tensor:
        share = (counts(self) / counts(self))[:, None, None]  # (E, 1, 1)
        a = on_gradient(self.a, lambda grad: grad * share)
        return by_expert(by_expert(x, self.index, a), self.index, self.b)


@mutant("experts-gradients-summed", killed_by=ROWS)
class GradientsSummed(ExpertDelta):
    """Each expert's B gets the sum of all experts' gradients, as if they shared it."""

    def _branch(self, x: Tensor) -> Tensor:
        b = on_gradient(self.b, lambda grad: grad.sum(0).expand_as(grad))
        return by_expert(by_expert(x, self.index, self.a), self.index, b)


@mutant("scale-divided-by-experts", killed_by=[*ROWS, "merge-delta-oracle"])
class ScaleOfPackedRank(ExpertDelta):
    """The scaling is alpha/(E·r): the rank is read off the packed factors of all experts."""

    @property
    def scaling(self) -> float:
        return super().scaling / len(self.a)


@mutant("experts-merged-rank-major", killed_by=MERGES, thread="unslothai/unsloth#6930")
class RankMajor(ExpertDelta):
    """B is packed expert by expert, and unpacked rank by rank for the merge: right norm, scrambled values."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        experts, out, r = b.shape
        packed = b.permute(1, 0, 2).reshape(out, experts * r)
        return super()._product(a, packed.reshape(out, r, experts).permute(2, 0, 1))


@mutant("experts-merged-into-first", killed_by=MERGES)
class MergedIntoFirst(ExpertDelta):
    """Merging adds the deltas of all experts to the first."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        total = super()._product(a, b).sum(0, keepdim=True)  # (1, out, in)
        return F.pad(total, (0, 0, 0, 0, 0, len(a) - 1))  # (E, out, in)


@mutant("experts-init-fan-in-of-stack", killed_by=["init-distribution"], init=LAW)
class FanInOfStack(ExpertDelta):
    """torch's Kaiming initialisation takes r·in for the inputs of a stacked A (E, r, in), and A starts too small."""

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        nn.init.zeros_(self.b)


@mutant("experts-start-alike", killed_by=["init-distribution"], init=LAW)
class StartAlike(ExpertDelta):
    """One A is drawn, and every expert starts with it."""

    def reset(self) -> None:
        super().reset()
        with torch.no_grad():
            self.a.copy_(self.a[:1].expand_as(self.a).clone())
