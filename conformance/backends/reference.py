"""The project's own reference implementation: modules replaced by ``lora_ref.layers.LoraLayer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.contract import Array, Backend, Feature, Manifest, Weights
from conformance.torch_arrays import to_torch, torch_dtype
from conformance.torch_batch import Serve, TorchBatch
from conformance.torch_layer import Root, TorchLayer
from conformance.torch_model import TorchModelHandle
from lora_ref import model, routing, store
from lora_ref.combine import combine, weighted
from lora_ref.delta import Delta, read_weight
from lora_ref.geometry import Fused
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec


class ReferenceLayer(TorchLayer):
    wrapper = LoraLayer

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        layer, g, dtype = self.wrapper(root.layer), weights.geometry, torch_dtype(weights.adapter_dtype)
        if isinstance(g, Fused):
            layer.add("default", spec, dtype=dtype, parts=g.parts, enabled=g.enabled)
        else:
            layer.add("default", spec, dtype=dtype)
        root.layer = layer

    def add(self, root: Root, adapter: str, spec: LoraSpec, dtype: torch.dtype) -> None:
        root.layer.add(adapter, spec, dtype=dtype)

    def factors(self, layer: Any, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        delta = layer.adapters.delta(adapter)
        return delta.a, delta.b

    def magnitude(self, layer: Any, adapter: str) -> nn.Parameter:
        return layer.adapters.delta(adapter).m  # type: ignore[no-any-return]

    def weight(self, layer: Any) -> torch.Tensor:
        return layer.merged_weight if layer.merged else read_weight(layer.base)

    def enable(self, root: Root, on: bool) -> None:  # noqa: FBT001
        root.layer.enable() if on else root.layer.disable()

    def activate(self, root: Root, *adapters: str) -> None:
        root.layer.activate(*adapters)

    def delete(self, root: Root, adapter: str) -> None:
        root.layer.delete(adapter)

    def set_scale(self, root: Root, factor: float, adapter: str) -> None:
        root.layer.set_scale(adapter, factor)

    def combine(self, root: Root, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        combine(root.layer.base, root.layer.adapters, name, weighted(adapters, weights))

    def initialise(self, root: Root) -> None:
        for delta in root.modules():
            if isinstance(delta, Delta):
                delta.reset_parameters()


class ReferenceHandle(TorchModelHandle):
    def __init__(self, adapted: model.LoraModel) -> None:
        super().__init__(adapted.module)
        self.adapted = adapted

    def sites(self) -> Mapping[str, nn.Module]:
        return self.adapted.layers()

    def factors(self, path: str, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        delta = self._delta(path, adapter)
        return delta.a, delta.b

    def base_tensors(self) -> Mapping[str, torch.Tensor]:
        state = self.module.state_dict(keep_vars=True)
        return {k.replace(".base.", "."): v for k, v in state.items() if ".adapters." not in k}

    def spec_at(self, path: str, adapter: str = "default") -> tuple[int, float]:
        delta = self._delta(path, adapter)
        return delta.spec.r, delta.scaling

    def _delta(self, path: str, adapter: str) -> Delta:
        site: Any = self.module.get_submodule(path)
        return site.adapters.delta(adapter)  # type: ignore[no-any-return]

    def add(self, adapter: str, spec: LoraSpec) -> None:
        model.attach(self.module, spec, adapter, kind=type(self.adapted))

    def activate(self, *adapters: str) -> None:
        self.adapted.activate(*adapters)

    def delete(self, adapter: str) -> None:
        self.adapted.delete(adapter)

    def enable(self, on: bool) -> None:  # noqa: FBT001
        self.adapted.enable() if on else self.adapted.disable()

    def merge(self) -> None:
        self.adapted.merge()

    def unmerge(self) -> None:
        self.adapted.unmerge()

    def weight(self, path: str) -> torch.Tensor:
        return ReferenceLayer().weight(self.module.get_submodule(path))


class ReferenceModel:
    kind = model.LoraModel

    def attach(self, module: nn.Module, spec: LoraSpec) -> ReferenceHandle:
        return ReferenceHandle(model.attach(module, spec, kind=self.kind))


class ReferenceStore:
    kind = model.LoraModel

    def dump(self, handle: Any, folder: Path) -> None:
        store.save(handle.adapted, folder)

    def load(self, module: nn.Module, folder: Path) -> ReferenceHandle:
        return ReferenceHandle(store.load(module, folder, kind=self.kind))

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        store.load(handle.module, folder, adapter, kind=self.kind)


class ReferenceBatch(TorchBatch):
    route = staticmethod(routing.forward)

    def prepare(self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]]) -> Serve:
        w = to_torch(weights.w)
        w = w.T if weights.geometry.transposed else w  # type: ignore[attr-defined]
        bias = None if weights.bias is None else to_torch(weights.bias)
        routed = [(to_torch(a), to_torch(b), replace(spec, r=a.shape[0]).scaling) for a, b in adapters]
        return lambda x, index: self.route(x, w, bias, routed, index)


FEATURES = frozenset(Feature)
INIT = dict.fromkeys(("linear", "transposed", "conv", "fused", "experts"), "kaiming_uniform_a5")
INIT |= {"embedding": "normal"}

backend = Backend(
    Manifest(
        name="reference",
        version=version("lora-conformance"),
        dtypes=("float32", "bfloat16", "float16"),
        features=FEATURES,
        init=INIT,
    ),
    layer=ReferenceLayer(),
    model=ReferenceModel(),
    store=ReferenceStore(),
    batch=ReferenceBatch(),
)
