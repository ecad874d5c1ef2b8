"""Results in the wrong dtype, or rounded once too often."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.contract import Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import Delta, LinearDelta, weight_of
from lora_ref.layers import Adapters, LoraLayer
from lora_ref.spec import LoraSpec

HALF = ("bfloat16",)


@mutant("autocast-upcasts-attention", killed_by=["dtype-preserved"], thread="huggingface/peft#971", dtypes=HALF)
class OutputUpcast(Adapters):
    """The sum of base and delta is not cast back: the output has the adapter's dtype where that is wider."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        names = tuple(names)
        dtypes = [self.delta(name).a.dtype for name in names]
        return super().add_to(out, x, names, plain).to(dtypes[0] if dtypes else out.dtype)


@mutant("output-always-float32", killed_by=["dtype-preserved"], dtypes=HALF)
class OutputFloat32(LoraLayer):
    """The layer computes and answers in float32 whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


@mutant("merged-weight-upcast", killed_by=["dtype-preserved"], dtypes=HALF)
class MergedUpcast(LoraLayer):
    """The merged weight stays in the dtype in which the delta was formed."""

    def effective_weight(self, *names: str) -> Tensor:
        total: Tensor = weight_of(self.base)
        for name in names or self.adapters.applied():
            total = total + self.adapters.delta(name).weight()
        return total


@mutant("adapter-dtype-ignored", killed_by=["dtype-preserved"], dtypes=HALF)
class AdapterDtypeIgnored(ReferenceLayer):
    """A and B are made in the base's dtype though float32 was asked for."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        root.layer.adapters.to(weight_of(root.layer.base).dtype)


@mutant(
    "peft-bf16-merge-loss",
    killed_by=["precision-bound"],
    thread="huggingface/peft#2502",
    dtypes=("bfloat16", "float16"),
)
class DeltaRoundedFirst(Delta):
    """The delta is rounded to the weight's dtype before it is added, so that a merge rounds twice."""

    def weight(self) -> Tensor:
        return super().weight().to(self.a.dtype).float()


@mutant("merge-truncates", killed_by=["precision-bound"], dtypes=HALF)
class MergeTruncates(LoraLayer):
    """The merged weight is cut to bfloat16 instead of being rounded."""

    def effective_weight(self, *names: str) -> Tensor:
        total = weight_of(self.base).float()
        for name in names or self.adapters.applied():
            total = total + self.adapters.delta(name).weight().float()
        return truncated(total)


@mutant("merge-in-half-precision", killed_by=["precision-bound"])
class MergeInHalf(Delta):
    """In a float32 layer the delta is formed in half precision."""

    def weight(self) -> Tensor:
        return self.scaling * self._product(self.a.half(), self.b.half()).float()


@mutant("output-truncates", killed_by=["identity-at-init", "base-path-untouched"], dtypes=HALF)
class OutputTruncates(Adapters):
    """The output is cut to bfloat16 instead of being rounded."""

    def add_to(self, out: Tensor, x: Tensor, names: Iterable[str], plain: Tensor | None = None) -> Tensor:
        wide = super().add_to(out.float(), x, names, plain)
        return truncated(wide - wide.abs() * 2.0**-10)


@mutant("forward-in-low-precision", killed_by=["forward-oracle"], thread="unslothai/unsloth#4005")
class ForwardInLowPrecision(LinearDelta):
    """The branch of a float32 layer is computed in a bfloat16 buffer."""

    def _branch(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.bfloat16(), self.a.bfloat16()), self.b.bfloat16()).to(self.a.dtype)


@mutant("hidden-in-half-precision", killed_by=["forward-oracle"])
class HiddenInHalf(LinearDelta):
    """What A gives is stored in half precision before B reads it."""

    def _branch(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a).half().to(self.a.dtype), self.b)


@mutant("accumulates-in-bfloat16", killed_by=["forward-oracle"], dtypes=HALF)
class AccumulatesInBfloat16(LinearDelta):
    """The sum over inputs is rounded to bfloat16 after every term."""

    def _branch(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(*x.shape[:-1], self.a.shape[0], dtype=self.a.dtype)
        for column in range(x.shape[-1]):
            hidden = hidden + (x[..., column, None] * self.a[:, column]).bfloat16().to(hidden.dtype)
            hidden = hidden.bfloat16().to(hidden.dtype)
        return F.linear(hidden, self.b)


def truncated(wide: Tensor) -> Tensor:
    """To bfloat16 by dropping bits, as a reinterpreting cast does."""
    return (wide.detach().contiguous().view(torch.int32) & -65536).view(torch.float32).bfloat16()
