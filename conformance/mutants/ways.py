"""Layers that are right when called plainly, and wrong when checkpointed or compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import Adapters, LoraLayer

_CHECKPOINT = ["checkpoint-equivalence"]
_COMPILE = ["compile-equivalence"]


@mutant(
    "checkpoint-no-grad",
    killed_by=["checkpoint-equivalence", "grad-oracle"],
    thread="huggingface/peft#137, microsoft/LoRA#120, locuslab/open-unlearning#178, kohya-ss/sd-scripts#91",
    on=Facet.MODEL,
)
class CheckpointsReentrantly(LoraLayer):
    """Each layer checkpoints itself reentrantly: where its input asks for no gradient, A and B never train."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=True)  # type: ignore[no-any-return]


@mutant("checkpoint-mask-not-replayed", killed_by=_CHECKPOINT)
class MaskFromACounter(LinearDelta):
    """Dropout takes its seed from a counter of training steps, which a recomputation advances too."""

    steps = 0

    def _dropped(self, x: Tensor) -> Tensor:
        if not (self.spec.dropout and self.training):
            return super()._dropped(x)
        generator = torch.Generator().manual_seed(torch.initial_seed() + self.steps)
        self.steps += torch.is_grad_enabled()
        kept = torch.rand(x.shape, generator=generator) >= self.spec.dropout
        return x.to(self.a.dtype) * kept / (1 - self.spec.dropout)


@mutant("checkpoint-forgets-random-state", killed_by=[*_CHECKPOINT, "grad-oracle"])
class CheckpointsWithoutRandomState(LoraLayer):
    """The layer saves memory by checkpointing itself, and lets dropout draw another mask in the recomputation."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


@mutant("checkpoint-remembers-hidden", killed_by=_CHECKPOINT)
class RemembersHidden(LinearDelta):
    """A(x) is kept for an equal input that follows, also when it was computed without gradients."""

    seen: tuple[Any, ...] = ()

    def _branch(self, x: Tensor) -> Tensor:
        key = (x.tolist(), self.a.tolist()) if self.training else ()
        if not self.seen or self.seen[0] != key or not self.training:
            self.seen = (key, F.linear(x, self.a))
        return F.linear(self.seen[1], self.b)


@mutant("checkpoint-delta-once-a-step", killed_by=_CHECKPOINT, on=Facet.MODEL)
class DeltaOnceAStep(LoraLayer):
    """A guard against double application lets the delta pass once in each step, and not when the layer is run again."""

    applied = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        out = super().forward(x) if not self.applied else self.base(x) + 0 * self.adapters.delta("default").b.sum()
        self.applied = True
        return out


@mutant("checkpoint-drops-frozen-input", killed_by=_CHECKPOINT, on=Facet.MODEL)
class AdaptsOnlyFirstPass(LoraLayer):
    """Without gradients a training forward goes through the base alone, as the first pass of a reentrant checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if torch.is_grad_enabled() or not self.training else self.base(x)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]  # noqa: SLF001
def _scaling_of(delta: Delta) -> float:
    return delta.spec.scaling * delta.factor


@mutant("llm-fused-compile", killed_by=_COMPILE, thread="huggingface/diffusers#9279, huggingface/diffusers#9453")
class ScaleBakedIn(Delta):
    """The scale is a number in the compiled graph, with nothing that notices when it changes."""

    @property
    def scaling(self) -> float:
        return _scaling_of(self)  # type: ignore[no-any-return]


@mutant("compile-scale-recompiles", killed_by=_COMPILE, thread="huggingface/diffusers#9279")
class EachScaleCompiles(Delta):
    """The scale is a string key of the graph, so that each new one compiles the layer once more."""

    @property
    def scaling(self) -> float:
        return float(f"{self.spec.scaling * self.factor!r}") if str(self.factor) else 0.0


@mutant("compile-counts-calls", killed_by=_COMPILE)
class CountsCalls(LoraLayer):
    """A Python counter of calls steers the forward, so that every call is compiled anew."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = super().forward(x)
        return out if self.calls % 1000 else out.clone()


@mutant("compile-not-taken", killed_by=_COMPILE)
class NeverCompiled(LoraLayer):
    """The layer takes itself out of every compiled region, silently: what is measured as compiled runs eagerly."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@mutant("compile-keeps-values", killed_by=_COMPILE)
class ValuesBakedIn(LinearDelta):
    """Compiled code works on copies of A and B that were made when it was compiled, as after a constant folding."""

    copies: tuple[Tensor, Tensor] | None = None

    def _branch(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super()._branch(x)
        a, b = _copied(self)
        return F.linear(F.linear(x, a + 0 * self.a), b + 0 * self.b)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]  # noqa: SLF001
def _copied(delta: Delta) -> tuple[Tensor, Tensor]:
    return delta.a.detach().clone(), delta.b.detach().clone()


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]  # noqa: SLF001
def _names(adapters: Adapters) -> tuple[str, ...]:
    return adapters.active if adapters.enabled else ()


@mutant("compile-stale-after-switch", killed_by=_COMPILE)
class SwitchNotNoticed(Adapters):
    """Which adapters are active is settled when the layer is compiled; switching and disabling do nothing after it."""

    def applied(self) -> tuple[str, ...]:
        return _names(self) if torch.compiler.is_compiling() else super().applied()


@mutant("compile-adds-to-merged", killed_by=_COMPILE)
class MergedDoubledWhenCompiled(LoraLayer):
    """Compiled code adds the delta to the merged weight, which has it already."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if self.merged and torch.compiler.is_compiling():
            return self.adapters.add_to(out, x, self.merged)
        return out


@mutant("compile-keeps-merged-weight", killed_by=_COMPILE)
class KeepsMergedWeight(LoraLayer):
    """Compiled code reads the merged weight of the first merge for ever, whatever is merged later."""

    first: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not (self.merged and torch.compiler.is_compiling()) or not isinstance(self.base, nn.Linear):
            return super().forward(x)
        return F.linear(x, _first_merged(self), self.base.bias)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]  # noqa: SLF001
def _first_merged(layer: KeepsMergedWeight) -> Tensor:
    if layer.first is None:
        assert layer.merged_weight is not None
        layer.first = layer.merged_weight.clone()
    return layer.first


@mutant("compile-loses-gradient", killed_by=_COMPILE)
class CompiledLosesGradient(LinearDelta):
    """Compiled code computes the delta with detached factors: its output is right, and A and B do not train."""

    def _branch(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super()._branch(x)
        return F.linear(F.linear(x, self.a.detach()), self.b.detach())
