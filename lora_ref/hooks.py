"""LoRA without replacing a module: each target gets a child ``lora`` and a hook that adds the child's delta.

Paths and state-dict keys of the base stay as they are. The hook is one function for all: it reads the adapters of the
module that it is called for, so it survives deepcopy and pickle, and cannot read those of another module. What it
cannot do is swap the weight, so there is no merging; and a caller that reads ``weight`` instead of calling the module
sees W, not W'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_ref.delta import Delta, supported
from lora_ref.errors import LoraError
from lora_ref.layers import Adapters, outer_modules
from lora_ref.model import Adapted
from lora_ref.spec import LoraSpec


class HookedAdapters(Adapters):
    """Adapters that know the hook which applies them, to take it away again."""

    handle: RemovableHandle


def add_deltas(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Tensor:
    """The forward hook: base output + Σ delta(x) of the module's own active adapters."""
    adapters = module.lora
    assert isinstance(adapters, HookedAdapters)
    (x,) = (*args, *kwargs.values())
    names = adapters.applied()
    return adapters.add_to(out, x, names) if names else out


class HookedModel(Adapted):
    def hooked(self) -> dict[str, nn.Module]:
        modules = outer_modules(self.module).items()
        return {path: module for path, module in modules if isinstance(getattr(module, "lora", None), HookedAdapters)}

    def adapters(self) -> dict[str, Adapters]:
        found = {path: module.lora for path, module in self.hooked().items()}
        return {path: each for path, each in found.items() if isinstance(each, Adapters)}

    def bases(self) -> dict[str, nn.Module]:
        return {path: module for path, module in outer_modules(self.module).items() if path and supported(module)}

    def plan(self, name: str, spec: LoraSpec, dtype: torch.dtype | None = None) -> dict[str, Delta]:
        deltas, bases, hooked = super().plan(name, spec, dtype), self.bases(), self.hooked()
        for path in deltas.keys() - hooked.keys():
            if hasattr(bases[path], "lora"):
                raise LoraError(
                    f"{path!r} has an attribute lora of its own, which the hook would take for its adapters"
                )
        return deltas

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        bases, hooked = self.bases(), self.hooked()
        for path in paths:
            if path not in hooked:
                lora = HookedAdapters().train(bases[path].training)
                bases[path].add_module("lora", lora)
                lora.handle = bases[path].register_forward_hook(add_deltas, with_kwargs=True)
        adapters = self.adapters()
        return {path: adapters[path] for path in paths}

    def delete(self, name: str) -> None:
        """Remove an adapter; a target without any other loses its hook too."""
        self.check_known(name)
        for each in self.adapters().values():
            if name in each:
                each.delete(name)
        self._unhook([module for module in self.hooked().values() if not module.lora])

    def detach(self) -> nn.Module:
        """Remove all adapters and hooks: the bare model, as it was but frozen."""
        self._unhook(list(self.hooked().values()))
        return self.module

    def merge(self, *names: str) -> None:
        raise LoraError(f"hooks cannot merge {', '.join(names or self.names)}: they leave the weight alone; use attach")

    def _unhook(self, modules: list[nn.Module]) -> None:
        for module in modules:
            assert isinstance(module.lora, HookedAdapters)
            module.lora.handle.remove()
            del module.lora


def attach_hooks(
    model: nn.Module,
    spec: LoraSpec,
    name: str = "default",
    *,
    trainable: bool = True,
    dtype: torch.dtype | None = None,
) -> HookedModel:
    """What ``attach`` does, by hooks; the same errors, and the model unchanged then."""
    lora = HookedModel(model)
    lora.add(name, spec, lora.plan(name, spec, dtype), trainable=trainable)
    return lora
