"""A forward that computes something else."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import gradient_only
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import LoraLayer


@mutant(
    "mha-out-proj-double-delta",
    killed_by=["forward-oracle", "grad-oracle", "merge-delta-oracle"],
    thread="huggingface/peft#3774",
)
class DoubleDelta(Delta):
    """The delta counts twice, in forward, in training and in a merge alike, so that no round trip shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)

    def weight(self) -> Tensor:
        return 2 * super().weight()


@mutant("delta-missing", killed_by=["forward-oracle"])
class DeltaMissing(LoraLayer):
    """Forward answers with the base alone; only a merge shows the adapter."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        base: Tensor = self.base(x)
        return out if self.merged else base + 0 * out


@mutant("delta-subtracted", killed_by=["forward-oracle"])
class DeltaSubtracted(Delta):
    """The delta is subtracted from the base's output."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


@mutant("transposed-where-square", killed_by=["forward-oracle"])
class TransposedWhereSquare(LinearDelta):
    """A layer with as many outputs as inputs multiplies with the transpose of B·A."""

    def _branch(self, x: Tensor) -> Tensor:
        if self.a.shape[1] != self.b.shape[0]:
            return super()._branch(x)
        return F.linear(F.linear(x, self.b.T), self.a.T)


@mutant("no-delta-where-square", killed_by=["forward-oracle"])
class NoDeltaWhereSquare(LinearDelta):
    """A shortcut for layers with as many outputs as inputs forgets B."""

    def _branch(self, x: Tensor) -> Tensor:
        return 0 * super()._branch(x) + x if self.a.shape[1] == self.b.shape[0] else super()._branch(x)


@mutant("base-bias-added-again", killed_by=["forward-oracle", "base-path-untouched"])
class BiasAddedAgain(LoraLayer):
    """The branch adds the base's bias once more; layers without one are right."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.bias is None or self.merged else out + self.bias


@mutant("base-scaled-along", killed_by=["base-path-untouched", "forward-oracle"])
class BaseScaled(LoraLayer):
    """s multiplies the sum of the base and B·A instead of B·A alone."""

    def forward(self, x: Tensor) -> Tensor:
        out, names = super().forward(x), self.adapters.applied()
        return out if self.merged or not names else out + (self.adapters.delta(names[0]).scaling - 1) * self.base(x)


@mutant("base-gradient-scaled-along", killed_by=["base-path-untouched", "grad-oracle"])
class BaseGradientScaled(LoraLayer):
    """The gradient that returns through the frozen base carries s too; outputs are right."""

    def forward(self, x: Tensor) -> Tensor:
        out, names = super().forward(x), self.adapters.applied()
        if self.merged or not names or not x.is_floating_point():
            return out
        scaling = self.adapters.delta(names[0]).scaling
        return out + (scaling - 1) * gradient_only(self.base(x))


@mutant("second-call-adds-twice", killed_by=["eval-deterministic"])
class SecondCallAddsTwice(Delta):
    """A buffer of the first call is added to again by the second."""

    before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        stale = self.before if self.before is not None and self.before.shape == delta.shape else 0 * delta
        self.before = delta.detach()
        return delta + stale


@mutant("delta-remembered-by-shape", killed_by=["eval-deterministic"], thread="vllm-project/vllm#42125, #48352")
class DeltaRememberedByShape(Delta):
    """Evaluation looks up the delta of an earlier input of the same shape."""

    known: dict[object, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        self.known = self.known or {}
        return self.known.setdefault(x.shape, super().forward(x))


@mutant("product-remembered", killed_by=["eval-deterministic"], thread="vllm-project/vllm#30931")
class ProductRemembered(LinearDelta):
    """Evaluation forms B·A once and keeps it, whatever training makes of A and B."""

    product: Tensor | None = None

    def _branch(self, x: Tensor) -> Tensor:
        if self.training:
            return super()._branch(x)
        self.product = self.b @ self.a if self.product is None else self.product
        return F.linear(x, self.product)


@mutant("wrong-after-training-step", killed_by=["mode-lifecycle"])
class WrongAfterTraining(Delta):
    """Once trained, evaluation still carries the last training call's multiplier."""

    trained = False

    def forward(self, x: Tensor) -> Tensor:
        self.trained = self.trained or self.training
        return super().forward(x) * (2 if self.trained and not self.training else 1)


@mutant("input-changed-in-place", killed_by=["forward-oracle"], on=Facet.MODEL)
class InputChanged(LinearDelta):
    """s is multiplied into the input in place, so that the next projection reads what this one left."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        x.data.mul_(self.scaling)
        return delta
