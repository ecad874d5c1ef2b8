"""Training and evaluation mixed up; dropout where it should not be, or not where it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor
from torch.func import functional_call

from conformance.contract import Facet, Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer, gradient_only
from conformance.torch_layer import Root
from lora_ref.delta import Delta, FusedDelta, LinearDelta
from lora_ref.layers import Adapters, LoraLayer
from lora_ref.spec import LoraSpec


@mutant(
    "dropout-never-applied",
    killed_by=["dropout-on-delta-only"],
    thread="meta-pytorch/torchtune#996, paiml/aprender#2170",
)
class DropoutNever(LinearDelta):
    """The dropout probability is stored and never used."""

    def _dropped(self, x: Tensor) -> Tensor:
        return x.to(self.a.dtype)


@mutant("dropout-of-whole-rows", killed_by=["dropout-on-delta-only"])
class DropoutOfRows(LinearDelta):
    """One choice is made for all inputs of a row."""

    def _dropped(self, x: Tensor) -> Tensor:
        x, p = x.to(self.a.dtype), self.spec.dropout
        return x * F.dropout(torch.ones_like(x[..., :1]), p, self.training)  # (..., in) * (..., 1)


@mutant("qdora-dropout-missing", killed_by=["dropout-on-delta-only"], thread="huggingface/peft#1806")
class DropoutMissingInFused(FusedDelta):
    """Of several kinds of layers one, the fused projections, forgets its dropout."""

    def _dropped(self, x: Tensor) -> Tensor:
        return x.to(self.a.dtype)


@mutant("double-inference-scale", killed_by=["eval-deterministic"], thread="ooples/AiDotNet#256")
class DoubleInferenceScale(Delta):
    """Evaluation multiplies the delta by 1-p although training has divided by it."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return delta if self.training else (1 - self.spec.dropout) * delta


@mutant("dropout-not-inverted", killed_by=["dropout-on-delta-only"])
class DropoutNotInverted(LinearDelta):
    """What dropout keeps is not scaled up by 1/(1-p)."""

    def _dropped(self, x: Tensor) -> Tensor:
        return super()._dropped(x) * ((1 - self.spec.dropout) if self.training else 1)


@mutant("dropout-in-eval", killed_by=["eval-deterministic"])
class DropoutInEval(LinearDelta):
    """Dropout acts in evaluation as in training."""

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x.to(self.a.dtype), self.spec.dropout)


@mutant("dropout-probability-of-keeping", killed_by=["dropout-on-delta-only"])
class DropoutKeeps(LinearDelta):
    """p is taken for the probability of keeping an input, which is right where it is one half."""

    def _dropped(self, x: Tensor) -> Tensor:
        keep = self.spec.dropout if self.training and self.spec.dropout else 1.0
        return F.dropout(x.to(self.a.dtype), 1 - keep) * (keep / (1 - self.spec.dropout) if keep < 1 else 1)


@mutant("dropout-on-base-too", killed_by=["dropout-on-delta-only", "base-path-untouched"])
class DropoutOnBase(ReferenceLayer):
    """The base reads an input from which dropout has taken its share, too."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        if spec.dropout:
            root.layer.base.register_forward_pre_hook(lambda base, x: F.dropout(x[0], spec.dropout, base.training))


@mutant("dropout-on-output", killed_by=["dropout-on-delta-only"])
class DropoutOnOutput(LinearDelta):
    """Dropout acts on the delta itself instead of the input of A."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.scaling * self._branch(x.to(self.a.dtype)), self.spec.dropout, self.training)


@mutant("dropout-on-hidden", killed_by=["dropout-on-delta-only"])
class DropoutOnHidden(LinearDelta):
    """Dropout acts between A and B."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.linear(x.to(self.a.dtype), self.a), self.spec.dropout, self.training)
        return self.scaling * F.linear(hidden, self.b)


@mutant("dropout-same-for-all-rows", killed_by=["dropout-on-delta-only"])
class DropoutSharedByRows(LinearDelta):
    """One mask serves all rows of a batch."""

    def _dropped(self, x: Tensor) -> Tensor:
        return x.to(self.a.dtype) * F.dropout(self.a.new_ones(x.shape[-1]), self.spec.dropout, self.training)


@mutant("dropout-same-in-each-call", killed_by=["dropout-on-delta-only"])
class DropoutSameInEachCall(LinearDelta):
    """The mask comes from a generator that is seeded alike before each call."""

    def _dropped(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super()._dropped(x)


@mutant("dropout-of-one-half-always", killed_by=["dropout-on-delta-only"])
class DropoutHardCoded(LinearDelta):
    """Dropout is switched on by its probability, and then always that of one half."""

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x.to(self.a.dtype), 0.5, self.training and self.spec.dropout > 0)


@mutant("mode-does-not-reach-layer", killed_by=["eval-deterministic"])
class ModeDoesNotReach(LoraLayer):
    """The layer keeps the mode that it was made in: train() and eval() through the parent stop at it."""

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002 (as in torch)
        return self


@mutant("eval-is-for-good", killed_by=["mode-lifecycle"])
class EvalForGood(LoraLayer):
    """After the first eval() no train() reaches the adapters any more."""

    settled = False

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (as in torch)
        self.settled = self.settled or not mode
        return super().train(mode and not self.settled)


@mutant("eval-freezes-for-good", killed_by=["mode-lifecycle"])
class EvalFreezes(LoraLayer):
    """eval() freezes A and B, and train() forgets to thaw them."""

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (as in torch)
        self.adapters.requires_grad_(requires_grad=mode and self.adapters.delta("default").a.requires_grad)
        return super().train(mode)


@mutant("eval-merges-twice", killed_by=["eval-deterministic"], thread="Lightning-AI/litgpt#512, huggingface/peft#1355")
class EvalMergesTwice(LoraLayer):
    """eval() merges, train() unmerges, and a second eval() merges once more."""

    merges = 0

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (as in torch)
        self.merges = 0 if mode else self.merges + 1
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters.add_to(super().forward(x), x, self.adapters.applied() * max(0, self.merges - 1))


@mutant("training-output-off", killed_by=["mode-lifecycle"])
class TrainingOutputOff(Delta):
    """The forward of a training kernel forgets s, while its backward has it."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return (delta / self.scaling).detach() + gradient_only(delta) if self.training and self.scaling else delta


@mutant("train-while-merged", killed_by=["mode-lifecycle"])
class TrainWhileMerged(LoraLayer):
    """A training forward while merged answers with the merged weight, through which A and B get no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.merged and torch.is_grad_enabled()):
            return super().forward(x)
        assert self.merged_weight is not None
        return functional_call(self.base, {"weight": self.merged_weight}, (x,))  # type: ignore[no-any-return]


@mutant("train-while-merged-adds-again", killed_by=["mode-lifecycle"])
class TrainWhileMergedAdds(LoraLayer):
    """A training forward while merged adds the delta to a base that has it already."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.merged and torch.is_grad_enabled()):
            return super().forward(x)
        assert self.merged_weight is not None
        out = functional_call(self.base, {"weight": self.merged_weight}, (x,))
        return self.adapters.add_to(out, x, self.merged)


@mutant("mergedlinear-fanout", killed_by=["mode-lifecycle"], thread="microsoft/LoRA#103, #105")
class FanInForgottenInTraining(LinearDelta):
    """A weight stored (in, out) is read as (out, in) in training, where square layers let the delta be transposed."""

    def _branch(self, x: Tensor) -> Tensor:
        if not (self.training and self.transposed):
            return super()._branch(x)
        return x @ (self.b @ self.a)


@mutant("training-off-for-other-kinds", killed_by=["mode-lifecycle"])
class TrainingOffForOtherKinds(Delta):
    """In training, layers other than linear ones count their delta twice."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return 2 * delta if self.training and not isinstance(self, LinearDelta) else delta


@mutant("dropout-never-in-a-model", killed_by=["eval-deterministic"], on=Facet.MODEL)
class DropoutNeverInModel(LinearDelta):
    """Layers have dropout, and a whole model has none."""

    def _dropped(self, x: Tensor) -> Tensor:
        return x.to(self.a.dtype)


@mutant("dropout-in-eval-of-a-model", killed_by=["eval-deterministic"], on=Facet.MODEL)
class DropoutInEvalOfModel(LinearDelta):
    """A whole model never leaves training mode as far as dropout goes."""

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x.to(self.a.dtype), self.spec.dropout)


@mutant("dropout-of-the-last-adapter", killed_by=["dropout-on-delta-only"])
class DropoutOfLast(Adapters):
    """The probability is kept once for the layer: the adapter that was added last sets it for all."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        for other in self:
            self.delta(other).spec = replace(self.delta(other).spec, dropout=delta.spec.dropout)


@mutant("dropout-of-the-first-adapter", killed_by=["dropout-on-delta-only"])
class DropoutOfFirst(Adapters):
    """The layer's dropout is made with its first adapter, and later ones use it too."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        delta.spec = replace(delta.spec, dropout=self.delta(next(iter(self))).spec.dropout)
