"""Combinations of adapters that are not the sum of their parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import Delta

_KILLED = ["active-set-additive"]


class BrokenCombination(ReferenceLayer):
    """The right combination, which ``spoil`` then makes wrong."""

    def combine(self, root: Root, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        super().combine(root, name, adapters, self.seen(weights))
        deltas: Any = root.layer.adapters
        parts = [deltas.delta(adapter) for adapter in adapters]
        with torch.no_grad():
            self.spoil(deltas.delta(name), parts, weights)

    def seen(self, weights: Sequence[float]) -> Sequence[float]:
        return weights

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:
        """Do it wrong."""


def columns(mix: Delta, parts: list[Delta]) -> list[torch.Tensor]:
    """The columns of the combination's B that belong to each part."""
    return list(torch.split(mix.b.data, [part.spec.r for part in parts], dim=1))


@mutant("combine-rslora-overscale", killed_by=_KILLED, thread="huggingface/peft#3761, #3449")
class RsloraOverscale(BrokenCombination):
    """The combination has alpha = r, and keeps rsLoRA's law, under which that is not 1 but sqrt(r)."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        mix.spec = replace(mix.spec, rslora=parts[0].spec.rslora)


@mutant("combine-scale-twice", killed_by=_KILLED, thread="huggingface/peft#3111")
class ScaleTwice(BrokenCombination):
    """Each part is multiplied by its s though its delta has it already."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        for block, part in zip(columns(mix, parts), parts, strict=True):
            block.mul_(part.scaling)


@mutant("combine-forgets-scale", killed_by=_KILLED)
class ForgetsScale(BrokenCombination):
    """The parts are added without their s."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        for block, part in zip(columns(mix, parts), parts, strict=True):
            block.div_(part.scaling)


@mutant("combine-first-scale-for-all", killed_by=_KILLED)
class FirstScaleForAll(BrokenCombination):
    """All parts are scaled as the first one is."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        for block, part in zip(columns(mix, parts), parts, strict=True):
            block.mul_(parts[0].scaling / part.scaling)


@mutant("combine-ignores-weights", killed_by=_KILLED)
class IgnoresWeights(BrokenCombination):
    """Every part counts once, whatever its weight."""

    def seen(self, weights: Sequence[float]) -> Sequence[float]:
        return [1.0] * len(weights)


@mutant("combine-loses-sign", killed_by=_KILLED)
class LosesSign(BrokenCombination):
    """Each factor gets the square root of the weight's size, so that a negative weight adds what it should take."""

    def seen(self, weights: Sequence[float]) -> Sequence[float]:
        return [math.sqrt(abs(weight)) ** 2 for weight in weights]


@mutant("combine-normalises-weights", killed_by=_KILLED)
class NormalisesWeights(BrokenCombination):
    """The weights are divided by the sum of their sizes."""

    def seen(self, weights: Sequence[float]) -> Sequence[float]:
        total = sum(abs(weight) for weight in weights)
        return [weight / total for weight in weights]


@mutant("combine-weight-on-both-factors", killed_by=_KILLED)
class WeightOnBoth(BrokenCombination):
    """The weight multiplies A as well as B, and so counts squared."""

    def seen(self, weights: Sequence[float]) -> Sequence[float]:
        return [weight * abs(weight) for weight in weights]


@mutant("combine-takes-last-only", killed_by=_KILLED)
class LastOnly(BrokenCombination):
    """Each part overwrites the one before it."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        for block in columns(mix, parts)[:-1]:
            block.zero_()


@mutant("combine-adds-factors", killed_by=_KILLED)
class AddsFactors(BrokenCombination):
    """The factors are added instead of the products, so that each B also meets the other parts' A."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        first, *rest = columns(mix, parts)
        for block in rest:
            rank = min(first.shape[1], block.shape[1])
            first[:, :rank] += block[:, :rank]


@mutant("combine-cuts-rank", killed_by=_KILLED)
class CutsRank(BrokenCombination):
    """The combination has room for the largest rank of its parts, not for their sum."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        mix.b.data[:, max(part.spec.r for part in parts) :] = 0


@mutant("combine-spoils-part", killed_by=_KILLED)
class SpoilsPart(BrokenCombination):
    """The weight is multiplied into the part itself."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        parts[0].b.data.mul_(2.0)


@mutant("combine-in-half-precision", killed_by=_KILLED)
class InHalf(BrokenCombination):
    """The combination is stored in half precision."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        mix.b.data.copy_(mix.b.data.to(torch.bfloat16))


@mutant("combine-activates", killed_by=_KILLED)
class Activates(BrokenCombination):
    """The combination is active at once, beside the adapters that were."""

    def combine(self, root: Root, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        super().combine(root, name, adapters, weights)
        root.layer.adapters.activate(*root.layer.adapters.active, name)


@mutant("combine-trains", killed_by=_KILLED)
class Trains(BrokenCombination):
    """The combination is trainable, though it is not active."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        mix.requires_grad_()


@mutant("combine-shares-single-part", killed_by=_KILLED)
class SharesSinglePart(BrokenCombination):
    """A combination of one adapter with weight 1 has that adapter's own tensors."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:
        if [*weights] == [1.0]:
            mix.a, mix.b, mix.spec = parts[0].a, parts[0].b, parts[0].spec


@mutant("combine-stacks-parts-in-place", killed_by=_KILLED)
class StacksInPlace(BrokenCombination):
    """The A of the parts become views of the combination's stacked A, to save memory: it follows what they learn."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        if len(parts) > 1:
            for part, rows in zip(parts, torch.split(mix.a.data, [part.spec.r for part in parts]), strict=True):
                part.a.data = rows.copy_(part.a.data)


@mutant("combine-shares-first-a", killed_by=_KILLED)
class SharesFirstA(BrokenCombination):
    """The A of a combination of one adapter is that adapter's tensor; B has its own."""

    def spoil(self, mix: Delta, parts: list[Delta], weights: Sequence[float]) -> None:  # noqa: ARG002
        if len(parts) == 1:
            mix.a.data = parts[0].a.data
