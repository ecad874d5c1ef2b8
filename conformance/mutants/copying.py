"""Copies that are not the same, or not another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import Delta
from lora_ref.hooks import HookedAdapters, HookedModel
from lora_ref.layers import Adapters

_KILLED = ["copy-independent"]


class BrokenCopy(ReferenceLayer):
    """The right copy, which ``spoil`` then makes wrong."""

    def copy(self, root: Root, *, pickled: bool) -> Root:
        twin = super().copy(root, pickled=pickled)
        self.spoil(twin, root)
        return twin

    def spoil(self, twin: Root, root: Root) -> None:
        """Do it wrong."""


def deltas(root: Root) -> list[Delta]:
    return [module for module in root.modules() if isinstance(module, Delta)]


@mutant("deepcopy-loses-config", killed_by=_KILLED, thread="huggingface/peft#424")
class LosesConfig(BrokenCopy):
    """The copy has the default alpha instead of the original's."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        for delta in deltas(twin):
            delta.spec = replace(delta.spec, alpha=8.0 * 3)


@mutant("copy-loses-rslora", killed_by=_KILLED)
class LosesRslora(BrokenCopy):
    """The copy does not know that it is scaled by rsLoRA's law."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        for delta in deltas(twin):
            delta.spec = replace(delta.spec, rslora=False)


@mutant("copy-loses-runtime-scale", killed_by=_KILLED)
class LosesRuntimeScale(BrokenCopy):
    """A runtime scale is not carried over."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        for delta in deltas(twin):
            delta.factor = 1.0


@mutant("copy-shares-factors", killed_by=_KILLED)
class SharesFactors(BrokenCopy):
    """The copy holds the original's own A and B."""

    def spoil(self, twin: Root, root: Root) -> None:
        for mine, theirs in zip(deltas(twin), deltas(root), strict=True):
            mine.a, mine.b = theirs.a, theirs.b


@mutant("copy-shares-memory", killed_by=_KILLED)
class SharesMemory(BrokenCopy):
    """The copy has parameters of its own, in the memory of the original's."""

    def spoil(self, twin: Root, root: Root) -> None:
        for mine, theirs in zip(deltas(twin), deltas(root), strict=True):
            mine.b.data = theirs.b.data


@mutant("copy-shares-adapters", killed_by=_KILLED)
class SharesAdapters(BrokenCopy):
    """The copy's layer has the original's adapters: what is switched in one is switched in both."""

    def spoil(self, twin: Root, root: Root) -> None:
        twin.layer.adapters = root.layer.adapters


@mutant("copy-shares-scale", killed_by=_KILLED)
class SharesScale(BrokenCopy):
    """A runtime scale is kept beside the layer, and both copies look there."""

    def spoil(self, twin: Root, root: Root) -> None:
        for mine, theirs in zip(deltas(twin), deltas(root), strict=True):
            mine.__class__ = type("Shared", (_ScaledElsewhere, type(mine)), {"theirs": theirs})


class _ScaledElsewhere(Delta):
    theirs: Delta

    @property
    def scaling(self) -> float:
        return self.spec.scaling * self.theirs.factor


@mutant("copy-forgets-active-set", killed_by=_KILLED)
class ForgetsActive(BrokenCopy):
    """The first adapter is the active one in a copy, whichever was in the original."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        twin.layer.adapters.activate("default")


@mutant("copy-is-enabled", killed_by=_KILLED)
class IsEnabled(BrokenCopy):
    """A copy of a layer whose adapters are disabled has them enabled."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        twin.layer.adapters.enabled = True


@mutant("copy-thaws-base", killed_by=_KILLED)
class ThawsBase(BrokenCopy):
    """The copy's base weight asks for gradients."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        twin.layer.base.requires_grad_(requires_grad=True)


@mutant("copy-freezes-adapters", killed_by=_KILLED)
class FreezesAdapters(BrokenCopy):
    """Nothing of a copy can be trained."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        twin.requires_grad_(requires_grad=False)


@mutant("copy-initialises-anew", killed_by=_KILLED)
class InitialisesAnew(BrokenCopy):
    """A copy is built from the config alone, and initialised."""

    def spoil(self, twin: Root, root: Root) -> None:  # noqa: ARG002
        for delta in deltas(twin):
            delta.reset()


@mutant("pickled-in-half-precision", killed_by=_KILLED)
class PickledInHalf(ReferenceLayer):
    """Pickling stores A and B in half precision."""

    def copy(self, root: Root, *, pickled: bool) -> Root:
        twin = super().copy(root, pickled=pickled)
        for delta in deltas(twin) if pickled else []:
            delta.b.data.copy_(delta.b.data.to(torch.bfloat16))
        return twin


@mutant("copy-takes-from-original", killed_by=_KILLED)
class TakesFromOriginal(ReferenceLayer):
    """Copying moves the values out of the original."""

    def copy(self, root: Root, *, pickled: bool) -> Root:
        twin = super().copy(root, pickled=pickled)
        for delta in deltas(root):
            delta.b.data.zero_()
        return twin


def bound_to(adapters: Adapters) -> Callable[..., Tensor]:
    def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        (x,) = (*args, *kwargs.values())
        names = adapters.applied()
        return adapters.add_to(out, x, names) if names else out

    return add


@mutant("copy-hooks-bound-to-original", killed_by=_KILLED, on=Facet.MODEL)
class HooksBound(HookedModel):
    """Each hook holds the adapters that it was made for: the hook of a copy reads the original's."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        adapters = super().carry(paths)
        for module in self.hooked().values():
            lora = module.lora
            assert isinstance(lora, HookedAdapters)
            lora.handle.remove()
            lora.handle = module.register_forward_hook(bound_to(lora), with_kwargs=True)
        return adapters
