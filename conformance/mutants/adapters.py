"""Several adapters on one base that get in each other's way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, weight_of
from lora_ref.layers import Adapters, LoraLayer
from lora_ref.spec import LoraSpec

_ISOLATION, _SUM = ["adapter-isolation"], ["active-set-additive"]


@mutant("second-resets-first", killed_by=_ISOLATION)
class SecondResetsFirst(Adapters):
    """Adding an adapter initialises all of them anew."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        for other in self:
            self.delta(other).reset()


@mutant("adapters-share-memory", killed_by=_ISOLATION)
class ShareMemory(Adapters):
    """A second adapter's A lies in the memory of the first one's, where it fits."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        for other in self:
            big = self.delta(other).a
            if len(big) >= len(delta.a):
                delta.a = nn.Parameter(big.detach()[: len(delta.a)])
        super().put(name, delta, spec, trainable=trainable)


@mutant("second-alpha-for-all", killed_by=_ISOLATION)
class SecondAlphaForAll(Adapters):
    """The scaling is kept once for the module: the last adapter that was added sets it for all."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        for other in self:
            self.delta(other).factor = delta.spec.scaling / self.delta(other).spec.scaling


@mutant("residual-taken-out-of-shared-base", killed_by=_ISOLATION, thread="huggingface/transformers#34468")
class ResidualMutatesBase(LoraLayer):
    """A later adapter takes its own initial product out of the base that it shares."""

    def add(self, name: str, spec: LoraSpec, **more: Any) -> None:
        super().add(name, spec, **more)
        if len(self.adapters) > 1:
            delta = self.adapters.delta(name)
            with torch.no_grad():
                delta.b.fill_(1.0)
                weight_of(self.base).sub_(delta.weight().to(weight_of(self.base).dtype))


@mutant("disable-knows-the-first-only", killed_by=_ISOLATION)
class DisableKnowsFirst(Adapters):
    """Disabling switches the adapter called "default" off, and no other."""

    def applied(self) -> tuple[str, ...]:
        return self.active if self.enabled else tuple(name for name in self.active if name != "default")


@mutant("disable-keeps-a-trace", killed_by=_ISOLATION)
class DisableScalesDown(Adapters):
    """Disabling scales the deltas down to almost nothing instead of leaving them out."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        whole = super().add_to(out, x, names, plain)
        return whole if self.enabled else out + 2.0**-10 * (whole - out)

    def applied(self) -> tuple[str, ...]:
        return self.active


@mutant("enable-activates-all", killed_by=_ISOLATION)
class EnableActivatesAll(LoraLayer):
    """Enabling makes all adapters active, also those that were not before."""

    def enable(self) -> None:
        super().enable()
        self.adapters.activate(*self.adapters)


@mutant("delete-empties-neighbour", killed_by=_ISOLATION)
class DeleteEmptiesNeighbour(Adapters):
    """Deleting one adapter clears the memory of the one that is left."""

    def delete(self, name: str) -> None:
        super().delete(name)
        for other in self:
            self.delta(other).b.data.zero_()


@mutant("delete-moves-values-up", killed_by=_ISOLATION)
class DeleteMovesUp(Adapters):
    """Adapters are numbered slots; deleting one gives its values to the one that takes its place, where they fit."""

    def delete(self, name: str) -> None:
        gone = self.delta(name)
        super().delete(name)
        for other in self:
            rank = min(gone.b.shape[1], self.delta(other).b.shape[1])
            self.delta(other).b.data[:, :rank] = gone.b.data[:, :rank]


@mutant("training-decays-all", killed_by=_ISOLATION)
class TrainingDecaysAll(Adapters):
    """Every training forward decays all adapters, also those that are not active."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        if self.training and torch.is_grad_enabled():
            for name in self:
                if name not in self.active:
                    self.delta(name).b.data.mul_(0.99)
        return super().add_to(out, x, names, plain)


@mutant("unmerge-knows-the-first-only", killed_by=_ISOLATION)
class UnmergeKnowsFirst(LoraLayer):
    """Unmerging any adapter but the first leaves its delta in the base."""

    def unmerge(self) -> None:
        if self.merged_weight is not None and "default" not in self.merged:
            weight_of(self.base).data.copy_(self.merged_weight)
        super().unmerge()


@mutant("switch-writes-over-old", killed_by=_ISOLATION)
class SwitchWritesOver(Adapters):
    """A switch copies the new adapter into the slot of the old one, as far as its rank goes."""

    def activate(self, *names: str) -> None:
        old = self.active
        super().activate(*names)
        if old and names and old != names and old[0] in self:
            slot, new = self.delta(old[0]).a, self.delta(names[0]).a
            rank = min(len(slot), len(new))
            slot.data[:rank] = new.data[:rank]


@mutant("only-first-active-applied", killed_by=_SUM)
class OnlyFirstApplied(Adapters):
    """Of several active adapters only the first is applied."""

    def applied(self) -> tuple[str, ...]:
        return super().applied()[:1]


@mutant("active-set-averaged", killed_by=_SUM)
class ActiveAveraged(Adapters):
    """Several active adapters are averaged instead of added up."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        names = tuple(names)
        return out + (super().add_to(out, x, names, plain) - out) / len(names)


@mutant("one-scaling-for-active-set", killed_by=_SUM)
class OneScaling(Adapters):
    """All active adapters are scaled as the first of them is."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:  # noqa: ARG002
        names = tuple(names)
        first = self.delta(names[0]).scaling
        for name in names:
            delta = self.delta(name)
            out = out + first / delta.scaling * delta(x)
        return out


@mutant("merge-takes-last-active", killed_by=_SUM)
class MergeTakesLast(LoraLayer):
    """A merge of several active adapters adds the last one's delta only."""

    def effective_weight(self, *names: str) -> Tensor:
        return super().effective_weight(*(names or self.adapters.applied())[-1:])


@mutant("second-active-has-no-gradient", killed_by=_SUM)
class SecondDetached(Adapters):
    """The deltas of all active adapters but the first are computed without a graph."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        first, *rest = names
        total = super().add_to(out, x, [first], plain)
        for name in rest:
            total = total + self.delta(name)(x).detach()
        return total


@mutant("second-active-rounded-to-half", killed_by=_SUM)
class SecondInHalf(Adapters):
    """The deltas of all active adapters but the first pass through half precision."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        first, *rest = names
        total = super().add_to(out, x, [first], plain)
        for name in rest:
            total = total + self.delta(name)(x).to(torch.bfloat16).to(out.dtype)
        return total


@mutant("first-scaling-law-for-all", killed_by=_SUM)
class FirstLawForAll(Adapters):
    """Whether alpha is divided by r or by its root is what the first adapter says, for all."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        first = self.delta(next(iter(self)))
        delta.spec = replace(delta.spec, rslora=first.spec.rslora)


@mutant("inactive-times-zero", killed_by=_ISOLATION)
class InactiveTimesZero(Adapters):
    """Adapters that are not active are multiplied by zero, so that a NaN in one reaches every output."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        total, used = super().add_to(out, x, names, plain), tuple(names)
        for name in self:
            if name not in used:
                total = total + (0 * self.delta(name).change(x, out)).to(total.dtype)
        return total
