"""Right outputs, wrong gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import gradient_only, on_gradient
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import LoraLayer
from lora_ref.model import LoraModel


@mutant("dropout-dx-mask-missing", killed_by=["grad-oracle"], thread="foundation-model-stack/fms-acceleration#97")
class MaskMissingInDx(LinearDelta):
    """The gradient of x ignores which inputs dropout kept; those of A and B are right."""

    def _dropped(self, x: Tensor) -> Tensor:
        return super()._dropped(x).detach() + gradient_only(x.to(self.a.dtype))


@mutant("dropout-dx-not-rescaled", killed_by=["grad-oracle"])
class MaskNotRescaledInDx(LinearDelta):
    """The gradient of x lacks dropout's factor 1/(1-p)."""

    def _dropped(self, x: Tensor) -> Tensor:
        keep = 1 - self.spec.dropout
        return super()._dropped(on_gradient(x, lambda gradient: keep * gradient) if self.training else x)


@mutant("dropout-dx-of-whole-layer", killed_by=["grad-oracle"])
class MaskOnWholeDx(LoraLayer):
    """The mask multiplies the whole gradient of x, the base's share too."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        dropout = self.adapters.delta("default").spec.dropout if self.training and x.is_floating_point() else 0.0
        if not dropout:
            return out
        through = self.base(x)
        return out + gradient_only(self.base(F.dropout(x, dropout))) - gradient_only(through)


@mutant("dropout-db-of-undropped-input", killed_by=["grad-oracle"])
class UndroppedInDb(LinearDelta):
    """The gradient of B is computed from the input before dropout."""

    def forward(self, x: Tensor) -> Tensor:
        hidden, whole = F.linear(self._dropped(x), self.a), F.linear(x.to(self.a.dtype), self.a).detach()
        return self.scaling * (F.linear(hidden, self.b.detach()) + gradient_only(F.linear(whole, self.b)))


@mutant("dropout-mask-drawn-again-in-backward", killed_by=["grad-oracle"])
class MaskDrawnAgain(LinearDelta):
    """The gradient of A uses another mask than forward did."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(F.linear(self._dropped(x), self.a.detach()), self.b)
        again = F.linear(F.linear(self._dropped(x).detach(), self.a), self.b.detach())
        return self.scaling * (out + gradient_only(again))


@mutant(
    "detached-lora-branch",
    killed_by=["grad-reaches-adapter", "grad-oracle"],
    thread="paiml/aprender#2232",
)
class DetachedBranch(Delta):
    """The scaled delta is rebuilt as a fresh tensor, which cuts it off from A and B."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@mutant("detached-hidden", killed_by=["grad-reaches-adapter", "grad-oracle"])
class DetachedHidden(LinearDelta):
    """What A gives is detached: B trains, A never does."""

    def _branch(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a).detach(), self.b)


@mutant("dx-misses-delta", killed_by=["grad-oracle"])
class DxMissesDelta(Delta):
    """The gradient of x is the base's alone: layers below do not see the adapter."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


@mutant("no-gradient-for-frozen-input", killed_by=["grad-reaches-adapter"], thread="huggingface/peft#137")
class NoGradientForFrozenInput(Delta):
    """The branch is only recorded where its input asks for a gradient, as reentrant checkpointing does it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.requires_grad else super().forward(x).detach()


@mutant("gradient-of-a-in-wrong-order", killed_by=["grad-oracle"])
class GradientReshaped(LinearDelta):
    """The gradient of A is computed transposed, and reshaped where it should be transposed back."""

    def _branch(self, x: Tensor) -> Tensor:
        a = on_gradient(self.a, lambda gradient: gradient.T.reshape(gradient.shape))
        return F.linear(F.linear(x, a), self.b)


@mutant("gradient-of-a-only-of-first-sequence", killed_by=["grad-oracle", "shape-general"])
class FirstSequenceOnly(LinearDelta):
    """The gradient of A is summed over the first entry of the batch only."""

    def _branch(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or not x.shape[0]:
            return super()._branch(x)
        hidden = torch.cat([F.linear(x[:1], self.a), F.linear(x[1:], self.a.detach())])
        return F.linear(hidden, self.b)


@mutant("gradient-of-b-averaged", killed_by=["grad-oracle"])
class GradientAveraged(LinearDelta):
    """The gradient of B is the mean over rows instead of the sum."""

    def _branch(self, x: Tensor) -> Tensor:
        rows = max(1, x.numel() // x.shape[-1])
        return F.linear(F.linear(x, self.a), on_gradient(self.b, lambda gradient: gradient / rows))


@mutant("gradient-of-b-in-low-precision", killed_by=["grad-oracle"])
class GradientRounded(LinearDelta):
    """The gradient of B is stored as bfloat16 on its way to a float32 parameter."""

    def _branch(self, x: Tensor) -> Tensor:
        b = on_gradient(self.b, lambda gradient: gradient.bfloat16().to(gradient.dtype))
        return F.linear(F.linear(x, self.a), b)


@mutant("gradient-only-in-first-backward", killed_by=["mode-lifecycle"])
class GradientOnce(Delta):
    """A buffer that the first backward frees leaves the second without gradients for A and B."""

    spent = False

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        fresh, self.spent = not self.spent, self.spent or delta.requires_grad
        return delta if fresh else delta.detach()


@mutant("gradients-pile-up", killed_by=["mode-lifecycle"])
class GradientsPileUp(LinearDelta):
    """A buffer of its own collects the gradient of A, and no zero_grad reaches it."""

    pile: Tensor | None = None

    def _collect(self, gradient: Tensor) -> Tensor:
        self.pile = gradient if self.pile is None else self.pile + gradient
        return self.pile

    def _branch(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, on_gradient(self.a, self._collect)), self.b)


@mutant("adapter-params-replaced-late", killed_by=["grad-reaches-adapter"], thread="huggingface/peft#3409")
class ReplacedLate(Delta):
    """The first forward puts new Parameter objects in place of A and B, and an optimiser trains the old ones."""

    ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.a, self.b = nn.Parameter(self.a.detach().clone()), nn.Parameter(self.b.detach().clone())
            self.ready = True
        return super().forward(x)


@mutant("fsdp-late-layers-no-grad", killed_by=["grad-oracle"], thread="meta-pytorch/torchforge#592")
class DetachedBetweenLayers(LoraModel):
    """What one adapted layer hands to the next is detached: only the last ones get gradients."""

    def add(self, *args: object, **kwargs: object) -> None:
        super().add(*args, **kwargs)  # type: ignore[arg-type]
        for layer in list(self.layers().values())[:-1]:
            layer.register_forward_hook(lambda _layer, _args, out: out.detach())


@mutant("model-gradient-of-b-doubled", killed_by=["grad-oracle"], on=Facet.MODEL)
class GradientOfBDoubled(LinearDelta):
    """In a whole model the gradient of B counts twice, as where two hooks reduce it."""

    def _branch(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), on_gradient(self.b, lambda gradient: 2 * gradient))
