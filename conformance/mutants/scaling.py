"""Scaling that is wrong, missing, or applied in the wrong number."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import on_gradient
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import Adapters, LoraLayer


@mutant("alpha-not-divided-by-r", killed_by=["scaling-law"], thread="Blaizzy/mlx-vlm#845, rasbt/LLMs-from-scratch#821")
class AlphaNotDividedByR(Delta):
    """The delta is multiplied by alpha instead of alpha/r."""

    @property
    def scaling(self) -> float:
        return self.spec.alpha * self.factor


@mutant("rslora-ignored", killed_by=["scaling-law"], thread="NVIDIA/TensorRT-LLM#1668, predibase/lorax#299")
class RsloraIgnored(Delta):
    """Alpha is divided by r though rsLoRA asks for its square root."""

    @property
    def scaling(self) -> float:
        return self.spec.alpha / self.spec.r * self.factor


@mutant("rslora-always", killed_by=["scaling-law"])
class RsloraAlways(Delta):
    """Alpha is divided by the square root of r though nobody asked for rsLoRA."""

    @property
    def scaling(self) -> float:
        return self.spec.alpha / math.sqrt(self.spec.r) * self.factor


@mutant("rslora-whole-root", killed_by=["scaling-law"])
class RsloraWholeRoot(Delta):
    """The square root of r is cut to a whole number, which is right for ranks that are squares."""

    @property
    def scaling(self) -> float:
        law = self.spec.alpha / math.isqrt(self.spec.r) if self.spec.rslora else self.spec.scaling
        return law * self.factor


@mutant("scaling-cut-to-whole-number", killed_by=["scaling-law"])
class ScalingWhole(Delta):
    """Alpha is divided by r with a whole-number division."""

    @property
    def scaling(self) -> float:
        return self.spec.scaling // 1 * self.factor


@mutant("alpha-cut-to-whole-number", killed_by=["scaling-law"])
class AlphaWhole(Delta):
    """A fractional alpha is cut to a whole number before it is divided."""

    @property
    def scaling(self) -> float:
        return super().scaling * int(self.spec.alpha) / self.spec.alpha


@mutant("scaling-kept-in-half-precision", killed_by=["scaling-law"])
class ScalingInHalf(Delta):
    """s is kept in a half-precision buffer, and rounded there."""

    @property
    def scaling(self) -> float:
        return torch.tensor(super().scaling, dtype=torch.float16).item()


@mutant("rank-capped-in-scaling", killed_by=["scaling-law"])
class RankCapped(Delta):
    """s is computed as if no rank were above 64, the largest that a table holds."""

    @property
    def scaling(self) -> float:
        return replace(self.spec, r=min(self.spec.r, 64)).scaling * self.factor


@mutant("scaling-inverted", killed_by=["scaling-law"])
class ScalingInverted(Delta):
    """s is r/alpha instead of alpha/r."""

    @property
    def scaling(self) -> float:
        return self.factor / self.spec.scaling


@mutant("scaling-twice-in-forward", killed_by=["scaling-once", "forward-oracle"])
class ScalingTwiceInForward(Delta):
    """s multiplies the input of A and the output of B: its square reaches the output, and training, but not a merge."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scaling * super().forward(x)


@mutant("combine-svd-scale-twice", killed_by=["scaling-once", "merge-delta-oracle"], thread="huggingface/peft#3111")
class ScalingTwiceInMerge(Delta):
    """A delta that is scaled already is multiplied by s again where weights are formed."""

    def weight(self) -> Tensor:
        return self.scaling * super().weight()


@mutant("gradient-of-a-scaled-twice", killed_by=["scaling-once", "grad-oracle"])
class GradientScaledTwice(LinearDelta):
    """The gradient of A carries s twice: once from the output, once more by hand."""

    def _branch(self, x: Tensor) -> Tensor:
        a = on_gradient(self.a, lambda gradient: self.scaling * gradient)
        return F.linear(F.linear(x, a), self.b)


@mutant("setscale-forgets-rslora", killed_by=["scale-runtime"], thread="huggingface/peft#2733")
class SetScaleForgetsRslora(Adapters):
    """Setting a runtime scale computes s afresh as alpha/r, also for rsLoRA."""

    def set_scale(self, name: str, factor: float) -> None:
        spec = self.delta(name).spec
        super().set_scale(name, factor * spec.alpha / spec.r / spec.scaling)


@mutant("lora-scale-no-effect", killed_by=["scale-runtime"], thread="huggingface/diffusers#9525")
class ScaleIgnored(Adapters):
    """A runtime scale is accepted and dropped."""

    def set_scale(self, name: str, factor: float) -> None:  # noqa: ARG002 - the defect
        self.check_known(name)


@mutant("runtime-scales-multiply-up", killed_by=["scale-runtime"])
class ScalesMultiply(Adapters):
    """A runtime scale multiplies the one that was set before, instead of replacing it."""

    def set_scale(self, name: str, factor: float) -> None:
        super().set_scale(name, factor * self.delta(name).factor)


@mutant("runtime-scale-zero-is-default", killed_by=["scale-runtime"])
class ZeroScaleIsDefault(Adapters):
    """A runtime scale of 0 is taken for one that was not given."""

    def set_scale(self, name: str, factor: float) -> None:
        super().set_scale(name, factor or 1.0)


@mutant("runtime-scale-not-merged", killed_by=["scale-runtime"])
class ScaleNotMerged(Delta):
    """A merge uses the spec's scaling, whatever the runtime scale is."""

    def weight(self) -> Tensor:
        return super().weight() / self.factor


@mutant("runtime-scale-after-first-call-ignored", killed_by=["scale-runtime"])
class ScaleFixedByFirstCall(Delta):
    """The first forward remembers s: later changes do not reach the output."""

    remembered: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.remembered = self.remembered or self.scaling
        return self.remembered * self._branch(self._dropped(x))


@mutant("runtime-scale-not-in-backward", killed_by=["scale-runtime"])
class ScaleNotInBackward(Delta):
    """A fused backward takes s from the spec, and never hears of a runtime scale."""

    def forward(self, x: Tensor) -> Tensor:
        delta, factor = super().forward(x), self.factor
        return on_gradient(delta, lambda gradient: gradient / factor if factor else gradient)


@mutant("merge-without-alpha", killed_by=["merge-delta-oracle", "merge-equivalence"], thread="hao-ai-lab/FastVideo#870")
class MergeWithoutAlpha(LoraLayer):
    """Merging adds B·A without alpha/r."""

    def effective_weight(self, *names: str) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        total = weight.to(torch.float32)
        for name in names:
            delta = self.adapters.delta(name)
            total = total + delta.weight() / delta.scaling
        return total.to(weight.dtype)
