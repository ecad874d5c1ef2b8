"""LoRA in a whole model: find the targets, freeze everything, wrap each target, control all adapters at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from lora_ref.delta import Delta, make_delta, supported
from lora_ref.errors import LoraError
from lora_ref.layers import Adapters, LoraLayer, outer_modules
from lora_ref.spec import LoraSpec
from lora_ref.targets import select


class Adapted(ABC):
    """A model with adapters, seen from outside: every control acts on all targets, or raises and acts on none.

    It holds nothing but ``module``; all that is to know stands in the module itself, and travels with its copies.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @abstractmethod
    def adapters(self) -> dict[str, Adapters]:
        """The adapters by the path of their target, as it is called in the bare model."""

    @abstractmethod
    def bases(self) -> dict[str, nn.Module]:
        """Every module that can carry LoRA, wrapped or not, by its path in the bare model; a shared one, once."""

    @abstractmethod
    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        """The adapters at these paths, empty ones where there are none yet."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for each in self.adapters().values() for name in each))

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for each in self.adapters().values() for name in each.active))

    @property
    def enabled(self) -> bool:
        return all(each.enabled for each in self.adapters().values())

    def spec(self, name: str) -> LoraSpec:
        """As it was given, with its patterns."""
        self.check_known(name)
        return next(each.specs[name] for each in self.adapters().values() if name in each)

    def deltas(self, name: str) -> dict[str, Delta]:
        self.check_known(name)
        return {path: each.delta(name) for path, each in self.adapters().items() if name in each}

    def check_known(self, *names: str) -> None:
        for name in names:
            if name not in self.names:
                raise LoraError(f"there is no adapter {name!r}; there are: {', '.join(self.names) or 'none'}")

    def activate(self, *names: str) -> None:
        """Make these, and no others, the active ones, each at the targets that it has."""
        self.check_known(*names)
        for each in self.adapters().values():
            each.activate(*(name for name in names if name in each))

    def enable(self) -> None:
        for each in self.adapters().values():
            each.enabled = True

    def disable(self) -> None:
        """Compute what the bare model computes, exactly."""
        for each in self.adapters().values():
            each.enabled = False

    def set_scale(self, name: str, factor: float) -> None:
        for delta in self.deltas(name).values():
            delta.factor = float(factor)

    def plan(self, name: str, spec: LoraSpec, dtype: torch.dtype | None = None) -> dict[str, Delta]:
        """The new branch of every target. A request that cannot be met raises here, before anything is changed."""
        if not spec.targets:
            raise LoraError("a spec without targets names no module")
        if name in self.names:
            raise LoraError(f"there is an adapter {name!r} already; delete it first or choose another name")
        Adapters().check_new(name)
        found = {part for part in outer_modules(self.module).values() if isinstance(part, Adapters)}
        if found - set(self.adapters().values()):
            raise LoraError("this model has adapters of the other kind: use either attach or attach_hooks")
        bases = self.bases()
        paths = select(spec.targets, bases)
        select(spec.rank_pattern, paths, "rank_pattern key")
        select(spec.alpha_pattern, paths, "alpha_pattern key")
        return {path: make_delta(bases[path], spec.at(path), dtype=dtype) for path in paths}

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        """Put planned branches in. The first adapter freezes the model and becomes active, a later one does neither."""
        if not self.names:
            self.module.requires_grad_(requires_grad=False)
        active, enabled = self.active if self.names else (name,), self.enabled
        for path, adapters in self.carry(list(deltas)).items():
            adapters.put(name, deltas[path], spec, trainable=trainable)
            if len(adapters) == 1:  # active by itself at this target, and perhaps not in the model
                adapters.activate(*(other for other in active if other in adapters))
            adapters.enabled = enabled


class LoraModel(Adapted):
    """The targets are replaced by ``LoraLayer``s; that gives merging and export to the controls."""

    wrapper: type[LoraLayer] = LoraLayer

    def layers(self) -> dict[str, LoraLayer]:
        return {path: m for path, m in outer_modules(self.module).items() if isinstance(m, LoraLayer)}

    def adapters(self) -> dict[str, Adapters]:
        return {path: layer.adapters for path, layer in self.layers().items()}

    def bases(self) -> dict[str, nn.Module]:
        modules = outer_modules(self.module)
        layers = {path: module for path, module in modules.items() if isinstance(module, LoraLayer)}
        inside = {id(part) for layer in layers.values() for part in (layer, *layer.base.modules())}
        plain = {p: m for p, m in modules.items() if p and id(m) not in inside and supported(m)}
        return plain | {path: layer.base for path, layer in layers.items()}

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        layers, bases = self.layers(), self.bases()
        if fresh := [path for path in paths if path not in layers]:
            self._replace({bases[path]: self.wrapper(bases[path]) for path in fresh})
            layers = self.layers()
        return {path: layers[path].adapters for path in paths}

    def activate(self, *names: str) -> None:
        self.check_known(*names)
        for layer in self.layers().values():
            layer.check_unmerged(*set(layer.merged) - set(names))
        super().activate(*names)

    def set_scale(self, name: str, factor: float) -> None:
        self._check_unmerged(name)
        super().set_scale(name, factor)

    def delete(self, name: str) -> None:
        """Remove an adapter; a layer without any other becomes the plain module that it was."""
        self.check_known(name)
        self._check_unmerged(name)
        for each in self.adapters().values():
            if name in each:
                each.delete(name)
        self._replace({layer: layer.base for layer in self.layers().values() if not layer.adapters})

    def merge(self, *names: str) -> None:
        """Merge these active adapters, by default all, in every layer or, if one would not be finite, in none."""
        self.check_known(*names)
        layers = [layer for layer in self.layers().values() if not names or any(n in layer.adapters for n in names)]
        plans = [layer.plan_merge(*(name for name in names if name in layer.adapters)) for layer in layers]
        for layer, plan in zip(layers, plans, strict=True):
            layer.commit(plan)

    def unmerge(self) -> None:
        for layer in self.layers().values():
            layer.unmerge()

    def unload(self, *, merge: bool) -> nn.Module:
        """Take all wrappers out: the original modules again, or with ``merge`` plain ones that hold W'.

        A weight W' is always a new parameter: a head that was tied to an embedding no longer is. All stays frozen.
        """
        self._replace({layer: layer.export() if merge else layer.base for layer in self.layers().values()})
        return self.module

    def _check_unmerged(self, name: str) -> None:
        for layer in self.layers().values():
            layer.check_unmerged(name)

    def _replace(self, new: Mapping[Any, nn.Module]) -> None:
        """Put ``new[old]`` wherever ``old`` is, under every name that a shared module has."""
        for parent in list(self.module.modules()):
            for name, child in list(parent._modules.items()):  # noqa: SLF001 (named_children hides second names)
                if child in new:
                    parent.add_module(name, new[child])


L = TypeVar("L", bound=LoraModel)


def attach(
    model: nn.Module,
    spec: LoraSpec,
    name: str = "default",
    *,
    trainable: bool = True,
    dtype: torch.dtype | None = None,
    kind: type[L] = LoraModel,  # type: ignore[assignment]
) -> L:
    """Freeze ``model`` and give every module that ``spec.targets`` names an adapter; ``model`` is changed in place.

    A second adapter may name other modules, and leaves the first and its training as they are. Activation
    checkpointing with ``use_reentrant=True`` trains only where an input of the checkpointed block requires grad.

    Raises:
        LoraError: a target or pattern key without a match, a module that cannot carry LoRA, a name that is taken.
            The model is unchanged then.
    """
    lora = kind(model)
    lora.add(name, spec, lora.plan(name, spec, dtype), trainable=trainable)
    return lora
