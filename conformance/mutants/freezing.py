"""The wrong things are trained."""

from __future__ import annotations

from torch import Tensor, nn

from conformance.contract import Facet, Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import Delta, weight_of
from lora_ref.layers import Adapters, LoraLayer
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec


@mutant(
    "base-not-frozen",
    killed_by=["base-frozen", "trainable-set-exact"],
    thread="microsoft/aurora#167, LLaVA-VL/LLaVA-NeXT#512",
)
class BackboneNotFrozen(LoraModel):
    """Only the adapted modules are frozen: embeddings, norms and all other layers stay trainable."""

    def add(self, *args: object, **kwargs: object) -> None:
        super().add(*args, **kwargs)  # type: ignore[arg-type]
        inside = {id(p) for layer in self.layers().values() for p in layer.parameters()}
        for parameter in self.module.parameters():
            if id(parameter) not in inside:
                parameter.requires_grad = True


@mutant("base-bias-not-frozen", killed_by=["base-frozen"])
class BiasNotFrozen(ReferenceLayer):
    """The weight is frozen, the bias beside it is not."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        if root.layer.bias is not None:
            root.layer.base.bias.requires_grad = True


@mutant("base-decayed-in-training", killed_by=["base-frozen"])
class BaseDecayed(LoraLayer):
    """The base asks for no gradient, yet every training forward shrinks it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            weight_of(self.base).data.mul_(0.999)
        return super().forward(x)


@mutant("base-gradient-zeroed-not-frozen", killed_by=["base-frozen"])
class BaseGradientZeroed(ReferenceLayer):
    """The base is kept still by zeroing its gradients, which weight decay does not ask for."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        weight = weight_of(root.layer.base)
        weight.requires_grad = True
        weight.register_hook(lambda gradient: 0 * gradient)  # type: ignore[no-untyped-call]


@mutant("a-frozen-too", killed_by=["trainable-set-exact"])
class AFrozen(Adapters):
    """Freezing the model takes A along; only B is trained."""

    def activate(self, *names: str) -> None:
        super().activate(*names)
        for name in self:
            self.delta(name).a.requires_grad = False


@mutant("stray-trainable-gate", killed_by=["trainable-set-exact"])
class StrayGate(ReferenceLayer):
    """A gate that nobody asked for is trained along; it is 1 at first."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        root.layer.gate = nn.Parameter(weight_of(root.layer.base).new_ones(1))
        root.layer.register_forward_hook(lambda layer, _args, out: out * layer.gate)


@mutant("second-adapter-trains-at-once", killed_by=["trainable-set-exact"])
class SecondTrainsAtOnce(Adapters):
    """An adapter that is added later is trainable though another one is active."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        delta.requires_grad_(trainable)


@mutant("load-second-flips-first", killed_by=["trainable-set-exact"], thread="huggingface/peft#3580, #3487")
class SecondFreezesFirst(Adapters):
    """Adding a second adapter freezes the first, which stays the active one."""

    def put(self, name: str, delta: Delta, spec: LoraSpec, *, trainable: bool) -> None:
        super().put(name, delta, spec, trainable=trainable)
        for other in self:
            if other != name:
                self[other].requires_grad_(requires_grad=False)


@mutant("switch-leaves-old-trainable", killed_by=["trainable-set-exact"])
class OldStaysTrainable(Adapters):
    """After a switch the adapter that was active before is trained as well."""

    def activate(self, *names: str) -> None:
        before = [name for name in self.active if name in self]
        super().activate(*names)
        for name in before:
            self[name].requires_grad_(requires_grad=True)


@mutant("switch-back-stays-frozen", killed_by=["trainable-set-exact"])
class BackStaysFrozen(Adapters):
    """An adapter that was switched off once is never trainable again."""

    retired: frozenset[str] = frozenset()

    def activate(self, *names: str) -> None:
        self.retired |= set(self.active) - set(names)
        super().activate(*names)
        for name in self.retired & set(self):
            self[name].requires_grad_(requires_grad=False)


@mutant("only-first-active-trains", killed_by=["trainable-set-exact"])
class OnlyFirstTrains(Adapters):
    """Of two active adapters only the first is trainable."""

    def activate(self, *names: str) -> None:
        super().activate(*names)
        for name in names[1:]:
            self[name].requires_grad_(requires_grad=False)


@mutant("delete-freezes-the-rest", killed_by=["trainable-set-exact"])
class DeleteFreezes(Adapters):
    """Deleting one adapter freezes those that remain."""

    def delete(self, name: str) -> None:
        super().delete(name)
        self.requires_grad_(requires_grad=False)


@mutant("unmerge-leaves-frozen", killed_by=["trainable-set-exact"])
class UnmergeLeavesFrozen(LoraLayer):
    """Merging freezes A and B, and unmerging forgets to thaw them."""

    def unmerge(self) -> None:
        if self.merged:
            self.adapters.requires_grad_(requires_grad=False)
        super().unmerge()


@mutant("disable-freezes-for-good", killed_by=["trainable-set-exact"])
class DisableFreezes(LoraLayer):
    """Disabling freezes A and B, and enabling them again does not thaw them."""

    def disable(self) -> None:
        super().disable()
        self.adapters.requires_grad_(requires_grad=False)


@mutant("model-freezes-adapters-too", killed_by=["trainable-set-exact", "grad-oracle"])
class FreezesAdaptersToo(LoraModel):
    """The model is frozen after the adapters were put in, and they with it."""

    def add(self, *args: object, **kwargs: object) -> None:
        super().add(*args, **kwargs)  # type: ignore[arg-type]
        self.module.requires_grad_(requires_grad=False)


@mutant("model-eval-freezes-for-good", killed_by=["grad-oracle"], on=Facet.MODEL)
class EvalFreezes(LoraLayer):
    """A first call in evaluation freezes A and B for good."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.adapters.requires_grad_(requires_grad=False)
        return super().forward(x)
