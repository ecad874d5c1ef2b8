"""The reference's other way in: forward hooks beside untouched modules. They cannot swap a weight, so none merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.backends.reference import FEATURES, INIT
from conformance.contract import Backend, Feature, Manifest, Weights
from conformance.torch_arrays import torch_dtype
from conformance.torch_layer import Root, TorchLayer
from conformance.torch_model import TorchModelHandle
from lora_ref import hooks, store
from lora_ref.combine import combine, weighted
from lora_ref.delta import Delta
from lora_ref.spec import LoraSpec


class HookedLayer(TorchLayer):
    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        self.add(root, "default", spec, torch_dtype(weights.adapter_dtype))

    def add(self, root: Root, adapter: str, spec: LoraSpec, dtype: torch.dtype) -> None:
        hooks.attach_hooks(root, replace(spec, targets=("layer",)), adapter, dtype=dtype)

    def base(self, layer: nn.Module) -> nn.Module:
        return layer

    def factors(self, layer: Any, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        delta = layer.lora.delta(adapter)
        return delta.a, delta.b

    def magnitude(self, layer: Any, adapter: str) -> nn.Parameter:
        return layer.lora.delta(adapter).m  # type: ignore[no-any-return]

    def enable(self, root: Root, on: bool) -> None:  # noqa: FBT001
        root.layer.lora.enabled = on

    def activate(self, root: Root, *adapters: str) -> None:
        root.layer.lora.activate(*adapters)

    def delete(self, root: Root, adapter: str) -> None:
        root.layer.lora.delete(adapter)

    def set_scale(self, root: Root, factor: float, adapter: str) -> None:
        root.layer.lora.set_scale(adapter, factor)

    def combine(self, root: Root, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        combine(root.layer, root.layer.lora, name, weighted(adapters, weights))

    def initialise(self, root: Root) -> None:
        for delta in root.modules():
            if isinstance(delta, Delta):
                delta.reset_parameters()


class HookedHandle(TorchModelHandle):
    def __init__(self, adapted: hooks.HookedModel) -> None:
        super().__init__(adapted.module)
        self.adapted = adapted

    def sites(self) -> Mapping[str, nn.Module]:
        return self.adapted.hooked()

    def factors(self, path: str, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        delta = self._delta(path, adapter)
        return delta.a, delta.b

    def base_tensors(self) -> Mapping[str, torch.Tensor]:
        return {k: v for k, v in self.module.state_dict(keep_vars=True).items() if ".lora." not in k}

    def spec_at(self, path: str, adapter: str = "default") -> tuple[int, float]:
        delta = self._delta(path, adapter)
        return delta.spec.r, delta.scaling

    def _delta(self, path: str, adapter: str) -> Delta:
        site: Any = self.module.get_submodule(path)
        return site.lora.delta(adapter)  # type: ignore[no-any-return]

    def add(self, adapter: str, spec: LoraSpec) -> None:
        hooks.attach_hooks(self.module, spec, adapter)

    def activate(self, *adapters: str) -> None:
        self.adapted.activate(*adapters)

    def delete(self, adapter: str) -> None:
        self.adapted.delete(adapter)

    def enable(self, on: bool) -> None:  # noqa: FBT001
        self.adapted.enable() if on else self.adapted.disable()


class HookedModel:
    def attach(self, module: nn.Module, spec: LoraSpec) -> HookedHandle:
        return HookedHandle(hooks.attach_hooks(module, spec))


class HookedStore:
    def dump(self, handle: Any, folder: Path) -> None:
        store.save(handle.adapted, folder)

    def load(self, module: nn.Module, folder: Path) -> HookedHandle:
        return HookedHandle(store.load(module, folder, kind=hooks.HookedModel))

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        store.load(handle.module, folder, adapter, kind=hooks.HookedModel)


backend = Backend(
    Manifest(
        name="hooks",
        version=version("lora-conformance"),
        dtypes=("float32", "bfloat16", "float16"),
        features=FEATURES - {Feature.MERGE, Feature.UNMERGE, Feature.FUSED, Feature.UNEQUAL_PARTS},
        init=INIT,
    ),
    layer=HookedLayer(),
    model=HookedModel(),
    store=HookedStore(),
)
