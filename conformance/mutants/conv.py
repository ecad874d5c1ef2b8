"""Convolutions and embeddings: hyper-parameters of the base that the adapter does not share."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import on_gradient
from lora_ref.delta import ConvDelta, EmbeddingDelta, LinearDelta

PARITY = ["base-geometry-parity"]


@mutant("conv-geometry-lost", killed_by=PARITY, thread="huggingface/peft#3697, #3700")
class PaddingModeLost(ConvDelta):
    """The adapter pads with zeros whatever the base's padding mode is: its delta is wrong at the borders."""

    def _branch(self, x: Tensor) -> Tensor:
        mode, self.padding_mode = self.padding_mode, "zeros"
        try:
            return super()._branch(x)
        finally:
            self.padding_mode = mode


@mutant("conv-dilation-lost", killed_by=PARITY, thread="huggingface/peft#3697")
class DilationLost(ConvDelta):
    """The adapter's kernel is not dilated, and its output is cropped to the base's."""

    def _branch(self, x: Tensor) -> Tensor:
        right = super()._branch(x)
        dilation, self.dilation = self.dilation, (1,) * self.dims
        try:
            return super()._branch(x)[tuple(slice(n) for n in right.shape)]
        finally:
            self.dilation = dilation


@mutant("conv-stride-of-first-axis", killed_by=PARITY)
class StrideOfFirstAxis(ConvDelta):
    """The base's first stride serves all axes."""

    def _branch(self, x: Tensor) -> Tensor:
        stride, self.stride = self.stride, (self.stride[0],) * self.dims
        try:
            return super()._branch(x)
        finally:
            self.stride = stride


@mutant("conv-padding-lost", killed_by=PARITY)
class PaddingLost(ConvDelta):
    """Where the kernel reads the padding before the first element there is no delta."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        assert not isinstance(self.padding, str)
        for axis, padding in enumerate(self.padding, start=2):
            inside = torch.arange(out.shape[axis]) >= padding
            out = out * inside.view(-1, *(1 for _ in out.shape[axis + 1 :]))
        return out


@mutant("conv-kernel-flipped", killed_by=PARITY)
class KernelFlipped(ConvDelta):
    """A is applied as a true convolution, flipped; the base correlates."""

    def _branch(self, x: Tensor) -> Tensor:
        kept = self.a.data
        self.a.data = kept.flip(tuple(range(2, kept.dim()))).contiguous()
        try:
            return super()._branch(x)
        finally:
            self.a.data = kept


@mutant("grouped-conv-delta", killed_by=PARITY, thread="KohakuBlueleaf/LyCORIS#285, huggingface/peft#2403")
class GroupsShareFirst(ConvDelta):
    """In a grouped convolution every group reads the channels of the first."""

    def _branch(self, x: Tensor) -> Tensor:
        first = x[:, : x.shape[1] // self.groups]
        return super()._branch(first.repeat(1, self.groups, *(1 for _ in x.shape[2:])))


@mutant("conv-one-dimension-only", killed_by=PARITY)
class ThirdDimension(ConvDelta):
    """Convolutions in three dimensions lose their delta."""

    def _branch(self, x: Tensor) -> Tensor:
        return super()._branch(x) * (self.dims < 3)


@mutant("embedding-padding-row-without-delta", killed_by=PARITY)
class PaddingRowWithoutDelta(EmbeddingDelta):
    """The padding id gets no delta, though the merged weight has one for it."""

    def _branch(self, x: Tensor) -> Tensor:
        return super()._branch(x) * (x != (-1 if self.padding_idx is None else self.padding_idx))[..., None]


@mutant("embedding-padding-row-trained", killed_by=PARITY)
class PaddingRowTrained(EmbeddingDelta):
    """The padding id's column of A gets a gradient, which the base's own row would not."""

    def _branch(self, x: Tensor) -> Tensor:
        return F.linear(F.embedding(x, self.a.T), self.b)


@mutant("embedding-repeated-ids-count-once", killed_by=PARITY)
class RepeatedIdsOnce(EmbeddingDelta):
    """The gradient of A is written, not added, so that an id which occurs twice counts once."""

    def _branch(self, x: Tensor) -> Tensor:
        counts = torch.bincount(x.reshape(-1), minlength=self.a.shape[1]).clamp(min=1)
        a = on_gradient(self.a, lambda gradient: gradient / counts)
        return F.linear(F.embedding(x, a.T, self.padding_idx), self.b)


@mutant("embedding-ids-above-rank", killed_by=PARITY)
class IdsAboveRank(EmbeddingDelta):
    """Ids are taken modulo the rank."""

    def _branch(self, x: Tensor) -> Tensor:
        return super()._branch(x % self.a.shape[0] if self.a.shape[0] < self.a.shape[1] else x)


@mutant("transposed-gradient-of-a-wrong", killed_by=PARITY)
class TransposedGradient(LinearDelta):
    """Over a weight stored (in, out) the gradient of A has its sign flipped."""

    def _branch(self, x: Tensor) -> Tensor:
        a = on_gradient(self.a, torch.neg) if self.transposed else self.a
        return F.linear(F.linear(x, a), self.b)
