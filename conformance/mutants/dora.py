"""DoRA with a norm, a magnitude or a merge that is wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conformance.contract import Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import LinearDelta, weight_of
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec
from lora_ref.variants import DoraDelta

DEAD = ["dora-consistent"]


def lengths(v: Tensor, *, ord: int = 2, dim: int = 1) -> Tensor:  # noqa: A002 (torch's name)
    norm: Tensor = torch.linalg.vector_norm(v, ord=ord, dim=dim)
    return norm


@mutant("dora-zero-row-nan", killed_by=DEAD, thread="huggingface/peft#2049, #3237")
class ZeroRow(DoraDelta):
    """m is divided by the norm even where that is zero."""

    def magnitude_factor(self) -> Tensor:
        return self.m / self.norm()


@mutant("dora-norm-over-outputs", killed_by=DEAD)
class OverOutputs(DoraDelta):
    """The norm is taken over the outputs of each input, which only a square weight allows."""

    def norm(self) -> Tensor:
        with torch.no_grad():
            v = self.matrix() + LinearDelta.weight(self)
            return lengths(v, dim=0 if v.shape[0] == v.shape[1] else 1)


@mutant("dora-norm-ignores-fan-in-fan-out", killed_by=DEAD)
class OverStoredRows(DoraDelta):
    """The norm is taken over the second axis of the weight as it is stored, which is wrong where that is (in, out)."""

    def norm(self) -> Tensor:
        right = super().norm()
        with torch.no_grad():
            stored = lengths(weight_of(self.base) + LinearDelta.weight(self))
        return stored if stored.shape == right.shape else right


@mutant("dora-norm-of-base-only", killed_by=DEAD)
class NormOfBase(DoraDelta):
    """The norm is that of W alone, as it was when the adapter was made."""

    def norm(self) -> Tensor:
        return lengths(self.matrix())


@mutant("dora-norm-of-unscaled-delta", killed_by=DEAD)
class NormUnscaled(DoraDelta):
    """The norm is that of W + BA: s is forgotten there."""

    def norm(self) -> Tensor:
        with torch.no_grad():
            delta = LinearDelta.weight(self) / self.scaling
            return lengths(self.matrix() + (delta.T if self.transposed else delta))


@mutant("dora-norm-not-detached", killed_by=DEAD)
class NormNotDetached(DoraDelta):
    """The norm is no constant for autograd: A and B also learn through it."""

    def norm(self) -> Tensor:
        delta = LinearDelta.weight(self)
        return lengths(self.matrix() + (delta.T if self.transposed else delta))


@mutant("dora-norm-of-one-norm", killed_by=DEAD)
class OneNorm(DoraDelta):
    """The norm is the sum of absolute values."""

    def norm(self) -> Tensor:
        with torch.no_grad():
            delta = LinearDelta.weight(self)
            return lengths(self.matrix() + (delta.T if self.transposed else delta), ord=1)


@mutant("dora-nan-uninit-magnitude", killed_by=DEAD, thread="meta-pytorch/torchtune#1903, #2129")
class Uninitialised(ReferenceLayer):
    """m is memory that nobody filled in."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        for delta in root.modules():
            if isinstance(delta, DoraDelta):
                delta.m.data.fill_(float("nan"))


@mutant("dora-magnitude-starts-at-one", killed_by=DEAD)
class StartsAtOne(ReferenceLayer):
    """m starts at 1 instead of the norm."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        for delta in root.modules():
            if isinstance(delta, DoraDelta):
                delta.m.data.fill_(1.0)


@mutant("dora-magnitude-not-trained", killed_by=DEAD, thread="meta-pytorch/torchtune#2250, #1909")
class NotTrained(LoraLayer):
    """The first forward puts a new parameter in the place of m, which no optimiser knows."""

    def forward(self, x: Tensor) -> Tensor:
        for delta in self.modules():
            if isinstance(delta, DoraDelta) and not hasattr(delta, "renewed"):
                delta.m, delta.renewed = nn.Parameter(delta.m.detach().clone()), torch.tensor([1])
        return super().forward(x)


@mutant("dora-magnitude-frozen", killed_by=DEAD)
class Frozen(ReferenceLayer):
    """m does not ask for gradients."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        for delta in root.modules():
            if isinstance(delta, DoraDelta):
                delta.m.requires_grad = False


@mutant("dora-bias-scaled", killed_by=DEAD)
class BiasScaled(DoraDelta):
    """The base's bias is scaled along with its product."""

    def change(self, x: Tensor, out: Tensor) -> Tensor:
        c = self.magnitude_factor()
        y: Tensor = (c - 1) * out + c * self(x)
        return y


@mutant("dora-base-not-scaled", killed_by=DEAD)
class BaseNotScaled(DoraDelta):
    """Only the delta is scaled by m/n, the base's share is not."""

    def change(self, x: Tensor, out: Tensor) -> Tensor:  # noqa: ARG002 (that is the defect)
        y: Tensor = self.magnitude_factor() * self(x)
        return y


@mutant("dora-merge-without-magnitude", killed_by=DEAD)
class MergeWithoutMagnitude(DoraDelta):
    """Merging adds s·B·A and forgets m."""

    def weight(self) -> Tensor:
        return LinearDelta.weight(self)


@mutant("dora-dropout-missing", killed_by=DEAD, thread="huggingface/peft#1806")
class DropoutMissing(DoraDelta):
    """Dropout is wired for plain LoRA and forgotten in the branch that has a magnitude."""

    def _dropped(self, x: Tensor) -> Tensor:
        return x.to(self.a.dtype)


def divide(layer: LoraLayer, merged: Tensor | None, *, renew: bool = False, transpose: bool = True) -> None:
    """Take a delta out of the merged weight by arithmetic, W = W' / c - s·B·A, as implementations without a copy do."""
    for delta in layer.modules():
        if isinstance(delta, DoraDelta) and merged is not None:
            plain, weight = LinearDelta.weight(delta).detach(), weight_of(layer.base)
            if renew:
                weight.data = merged
            c = delta.magnitude_factor().detach()
            weight.data = merged / (c if delta.transposed and transpose else c[:, None]) - plain


@mutant("dora-unmerge-fanout", killed_by=DEAD, thread="huggingface/peft#3531, #3532")
class UnmergeFanOut(LoraLayer):
    """Unmerging divides by m/n along the wrong axis where W is stored (in, out): silent where W is square."""

    def unmerge(self) -> None:
        merged = self.merged_weight
        super().unmerge()
        square = weight_of(self.base).shape[0] == weight_of(self.base).shape[1]
        divide(self, merged, transpose=not square)


@mutant("dora-unmerge-renews-norm", killed_by=DEAD)
class UnmergeRenewsNorm(LoraLayer):
    """Unmerging divides by m over the norm of the merged weight instead of the norm it was merged with."""

    def unmerge(self) -> None:
        merged = self.merged_weight
        super().unmerge()
        divide(self, merged, renew=True)
