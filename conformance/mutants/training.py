"""One step looks right; a training is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from conformance.contract import Array, Facet, Feature, Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_arrays import to_torch
from conformance.torch_handle import TorchHandle
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import LoraLayer
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec

_PLAIN = frozenset({Feature.TRAIN_STEP, Feature.BIAS, Feature.TRANSPOSED})

# -- steps of the backend's own -------------------------------------------------------------------------------------


class OwnStep(ReferenceLayer):
    """A layer whose optimiser is the library's: plain SGD but for the one defect."""

    def attach(self, spec: LoraSpec, weights: Weights) -> TorchHandle:
        handle = super().attach(spec, weights)
        handle.step = lambda *args, **kwargs: self.step(handle, *args, **kwargs)  # type: ignore[method-assign]
        return handle

    def step(self, handle: TorchHandle, x: Array, dy: Array, *, lr: float, weight_decay: float) -> None:
        gradients = handle.vjp(x, dy, train=True)
        with torch.no_grad():
            for name, factor, grad in zip(
                "ab", self.factors(handle.layer, "default"), (gradients.da, gradients.db), strict=True
            ):
                assert grad is not None
                factor.sub_(self.change(handle, name, factor, to_torch(grad), lr, weight_decay))

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:  # noqa: ARG002
        return lr * (grad + weight_decay * factor)


@mutant("step-keeps-old-gradient", killed_by=["step-oracle"], features=_PLAIN)
class KeepsOldGradient(OwnStep):
    """The gradients of the step before are still there when those of the next one are added."""

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:
        kept: dict[str, Tensor] = handle.__dict__.setdefault("kept", {})
        kept[name] = grad + kept.get(name, 0.0)
        return super().change(handle, name, factor, kept[name], lr, weight_decay)


@mutant("step-with-hidden-momentum", killed_by=["step-oracle"], features=_PLAIN)
class HiddenMomentum(OwnStep):
    """A tenth of the last change is made once more, which nobody asked for."""

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:
        last: dict[str, Tensor] = handle.__dict__.setdefault("last", {})
        last[name] = super().change(handle, name, factor, grad, lr, weight_decay) + 0.125 * last.get(name, 0.0)
        return last[name]


@mutant("step-b-faster-than-a", killed_by=["step-oracle"], features=_PLAIN)
class FasterB(OwnStep):
    """B learns four times as fast as A, as a well-meant default."""

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:
        return super().change(handle, name, factor, grad, lr * 4 if name == "b" else lr, weight_decay)


@mutant("step-clips-in-silence", killed_by=["step-oracle"], features=_PLAIN)
class Clips(OwnStep):
    """Gradients of a norm above 1 are shortened to 1."""

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:
        return super().change(handle, name, factor, grad / grad.norm().clamp(min=1.0), lr, weight_decay)


@mutant("step-averages-rows", killed_by=["step-oracle"], features=_PLAIN)
class AveragesRows(OwnStep):
    """The step is that of the mean over the rows, where the gradients are those of the sum."""

    def step(self, handle: TorchHandle, x: Array, dy: Array, *, lr: float, weight_decay: float) -> None:
        super().step(handle, x, dy, lr=lr / max(1, x[..., 0].size), weight_decay=weight_decay)


@mutant("step-decay-beside-lr", killed_by=["step-oracle"], features=_PLAIN)
class DecayBesideLr(OwnStep):
    """Weight decay is subtracted as it is, without the learning rate."""

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:  # noqa: ARG002
        return lr * grad + weight_decay * factor


@mutant("step-from-stale-master-copy", killed_by=["step-oracle"], features=_PLAIN)
class StaleMaster(OwnStep):
    """Steps are taken on a copy of A and B that was made when they were drawn; what was loaded since is lost."""

    def adapt(self, root: Any, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        root.__dict__["master"] = {
            n: f.detach().clone() for n, f in zip("ab", self.factors(root.layer, "default"), strict=True)
        }

    def change(self, handle: Any, name: str, factor: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:
        master: dict[str, Tensor] = handle.root.master
        master[name] = master[name] - super().change(handle, name, master[name], grad, lr, weight_decay)
        return factor - master[name]


# -- whole models ---------------------------------------------------------------------------------------------------


@mutant("training-detaches-from-second-step", killed_by=["training-parity"], on=Facet.MODEL)
class DetachesLater(LoraLayer):
    """From the second forward in training on, the gradient ends at each layer: only the last block learns."""

    trainings = 0

    def forward(self, x: Tensor) -> Tensor:
        self.trainings += self.training
        return super().forward(x.detach() + 0 * x if self.training and self.trainings > 1 else x)


@mutant("training-without-scale", killed_by=["training-parity"], on=Facet.MODEL)
class TrainsUnscaled(LinearDelta):
    """In training mode the delta is added as it is; s comes in only when the model is evaluated."""

    def forward(self, x: Tensor) -> Tensor:
        return self._branch(self._dropped(x)) if self.training else super().forward(x)


@mutant("evaluation-of-first-values", killed_by=["training-parity"], on=Facet.MODEL)
class EvaluatesFirstValues(LinearDelta):
    """What training changes reaches evaluation only in part: B is the one that the first forward in training met."""

    def _branch(self, x: Tensor) -> Tensor:
        if self.training:
            self.__dict__.setdefault("first", self.b.detach().clone())
        b = self.__dict__.get("first", self.b)
        return (
            super()._branch(x)
            if self.training
            else torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), b)
        )


class _Hooked(LoraModel):
    """Something happens to each gradient before it is added to what is there."""

    def arriving(self, grad: Tensor, there: Tensor | None) -> Tensor:
        raise NotImplementedError

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for delta in deltas.values():
            for factor in (delta.a, delta.b):
                factor.register_hook(lambda grad, factor=factor: self.arriving(grad, factor.grad))  # type: ignore[no-untyped-call]


@mutant("accumulation-overwrites", killed_by=["accumulation-parity"])
class Overwrites(_Hooked):
    """A kernel writes its gradient where it should add it: of an accumulated batch the last part is left."""

    def arriving(self, grad: Tensor, there: Tensor | None) -> Tensor:
        return grad if there is None else grad - there


@mutant("accumulation-averages-again", killed_by=["accumulation-parity"])
class AveragesAgain(_Hooked):
    """From the second part of a batch on, what there is of the gradient is halved, though the loss was divided."""

    def arriving(self, grad: Tensor, there: Tensor | None) -> Tensor:
        return grad if there is None else (grad - there) / 2


@mutant("accumulation-first-part-only", killed_by=["accumulation-parity"])
class FirstPartOnly(_Hooked):
    """A gradient that is there already is taken for the step's own, and nothing is added to it."""

    def arriving(self, grad: Tensor, there: Tensor | None) -> Tensor:
        return grad if there is None else torch.zeros_like(grad)


class _Stateful(LoraModel):
    """Something happens to A or B on the way through a state dict."""

    def saved(self, delta: Delta, state: dict[str, Any], prefix: str) -> None:
        """Spoil what is saved."""

    def loading(self, delta: Delta, state: dict[str, Any], prefix: str) -> None:
        """Spoil what is loaded."""

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for delta in deltas.values():
            hooked: Any = delta
            hooked.register_state_dict_post_hook(lambda module, state, prefix, _: self.saved(module, state, prefix))
            hooked.register_load_state_dict_pre_hook(lambda part, state, prefix, *_: self.loading(part, state, prefix))


@mutant("resume-with-scaled-b", killed_by=["resume-parity"])
class ScaledB(_Stateful):
    """A state dict holds s·B, ready to be merged, and loading takes it for B."""

    def saved(self, delta: Delta, state: dict[str, Any], prefix: str) -> None:
        state[f"{prefix}b"] = delta.scaling * state[f"{prefix}b"]


@mutant("resume-with-fresh-a", killed_by=["resume-parity"])
class FreshA(_Stateful):
    """A state dict that is loaded brings B; A stays as it was drawn for the new model."""

    def loading(self, delta: Delta, state: dict[str, Any], prefix: str) -> None:
        state[f"{prefix}a"] = delta.a.detach().clone()


@mutant("resume-in-another-order", killed_by=["resume-parity"])
class AnotherOrder(LoraModel):
    """Adapted a second time, parallel layers come in another order, and the momenta meet other parameters."""

    times = 0

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        type(self).times += 1
        for module in self.module.modules() if type(self).times % 2 == 0 else ():
            if not isinstance(module, nn.ModuleList | LoraLayer):
                module._modules = dict(reversed(module._modules.items()))  # noqa: SLF001


@mutant("merge-of-first-values", killed_by=["merge-after-training"], on=Facet.MODEL)
class MergesFirstValues(LoraLayer):
    """A merge adds the delta as it was when training began: it was formed then, to be at hand."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and "formed" not in self.__dict__:
            self.__dict__["formed"] = super().effective_weight().detach()
        return super().forward(x)

    def effective_weight(self, *names: str) -> Tensor:
        formed: Tensor | None = self.__dict__.get("formed")
        return super().effective_weight(*names) if formed is None else formed


@mutant("kept-on-the-module", killed_by=["accumulation-parity"], on=Facet.MODEL)
class KeptOnTheModule(LinearDelta):
    """What the backward needs is kept on the module: the next forward writes over it."""

    kept: tuple[Tensor, Tensor]

    def _branch(self, x: Tensor) -> Tensor:
        y: Tensor = _Kept.apply(x, self.a, self.b, self)  # type: ignore[no-untyped-call]
        return y


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, delta: KeptOnTheModule) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.delta = delta
        delta.kept = x.detach(), x.detach() @ a.t()
        return delta.kept[1] @ b.t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        x, h = (kept.reshape(-1, kept.shape[-1]) for kept in ctx.delta.kept)  # (M, in), (M, r)
        rows = dy.reshape(-1, dy.shape[-1])  # (M, out)
        return dy @ b @ a, (rows @ b).t() @ x, rows.t() @ h, None
