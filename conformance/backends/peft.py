"""Hugging Face PEFT: its LoRA layers, models and adapter files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from conformance.backends.peft_gaps import GAPS
from conformance.contract import Backend, Feature, Manifest, Weights
from conformance.torch_arrays import torch_dtype
from conformance.torch_layer import Root, TorchLayer
from conformance.torch_model import TorchModelHandle
from lora_ref.spec import LoraSpec


def config(spec: LoraSpec, targets: list[str], *, fan_in_fan_out: bool = False) -> LoraConfig:
    return LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        use_rslora=spec.rslora,
        lora_dropout=spec.dropout,
        target_modules=targets,
        rank_pattern=dict(spec.rank_pattern),
        alpha_pattern=dict(spec.alpha_pattern),
        fan_in_fan_out=fan_in_fan_out,
    )


class PeftLayer(TorchLayer):
    """The layer inside a ``PeftModel``, so that what the model itself forbids is forbidden here too."""

    conv1d = Conv1D

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        cfg = _config(root, spec)
        root.__dict__["peft"] = get_peft_model(root, cfg, autocast_adapter_dtype=False)  # no child: it holds the root
        self._cast(root, "default", torch_dtype(weights.adapter_dtype))

    def add(self, root: Root, adapter: str, spec: LoraSpec, dtype: torch.dtype) -> None:
        _model(root).add_adapter(adapter, _config(root, spec))
        self._cast(root, adapter, dtype)

    def _cast(self, root: Root, adapter: str, dtype: torch.dtype) -> None:
        for factor in self.factors(root.layer, adapter):
            factor.data = factor.data.to(dtype)

    def base(self, layer: nn.Module) -> nn.Module:
        base = layer.base_layer
        assert isinstance(base, nn.Module)
        return base

    def factors(self, layer: Any, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        if adapter in layer.lora_embedding_A:
            return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight

    def merge(self, root: Root) -> None:
        _model(root).merge_adapter()

    def unmerge(self, root: Root) -> None:
        _model(root).unmerge_adapter()

    def enable(self, root: Root, on: bool) -> None:  # noqa: FBT001
        _enable(_model(root), on)

    def activate(self, root: Root, *adapters: str) -> None:
        _model(root).base_model.set_adapter(list(adapters))

    def delete(self, root: Root, adapter: str) -> None:
        _model(root).delete_adapter(adapter)

    def set_scale(self, root: Root, factor: float, adapter: str) -> None:
        root.layer.set_scale(adapter, factor)


def _config(root: Root, spec: LoraSpec) -> LoraConfig:
    return config(spec, ["layer"], fan_in_fan_out=isinstance(getattr(root.layer, "base_layer", root.layer), Conv1D))


def _model(root: Any) -> PeftModel:
    return root.peft


def _enable(model: PeftModel, on: bool) -> None:  # noqa: FBT001
    model.base_model.enable_adapter_layers() if on else model.base_model.disable_adapter_layers()


class PeftHandle(TorchModelHandle):
    """A PeftModel; its paths carry a prefix, and its base weights a ``base_layer``, that the contract does not."""

    module: Any

    @property
    def prefix(self) -> str:
        return "base_model.model."

    def sites(self) -> Mapping[str, nn.Module]:
        named = self.module.named_modules()
        return {path.removeprefix(self.prefix): module for path, module in named if isinstance(module, LoraLayer)}

    def factors(self, path: str, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        return PeftLayer().factors(self.sites()[path], adapter)

    def spec_at(self, path: str, adapter: str = "default") -> tuple[int, float]:
        layer: Any = self.sites()[path]
        return layer.r[adapter], layer.scaling[adapter]

    def base_tensors(self) -> Mapping[str, torch.Tensor]:
        state = self.module.state_dict(keep_vars=True)
        plain = {k.removeprefix(self.prefix).replace(".base_layer.", "."): v for k, v in state.items()}
        return {k: v for k, v in plain.items() if ".lora_" not in k}

    def add(self, adapter: str, spec: LoraSpec) -> None:
        self.module.add_adapter(adapter, config(spec, list(spec.targets)))

    def activate(self, *adapters: str) -> None:
        self.module.base_model.set_adapter(list(adapters))

    def enable(self, on: bool) -> None:  # noqa: FBT001
        _enable(self.module, on)

    def merge(self) -> None:
        self.module.merge_adapter()

    def unmerge(self) -> None:
        self.module.unmerge_adapter()

    def weight(self, path: str) -> torch.Tensor:
        return PeftLayer().weight(self.sites()[path])


class PeftModels:
    def attach(self, module: nn.Module, spec: LoraSpec) -> PeftHandle:
        # float32 adapters over a narrower base are PEFT's default; here A and B follow the base, as the case asks
        return PeftHandle(get_peft_model(module, config(spec, list(spec.targets)), autocast_adapter_dtype=False))


class PeftStore:
    def dump(self, handle: Any, folder: Path) -> None:
        handle.module.save_pretrained(folder)

    def load(self, module: nn.Module, folder: Path) -> PeftHandle:
        return PeftHandle(PeftModel.from_pretrained(module, folder, autocast_adapter_dtype=False))


backend = Backend(
    Manifest(
        name="peft",
        version=version("peft"),
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset(
            {
                Feature.TRANSPOSED,
                Feature.EMBEDDING,
                Feature.CONV,
                Feature.GROUPED_CONV,
                Feature.BIAS,
                Feature.MIXED_DTYPE,
                Feature.RSLORA,
                Feature.DROPOUT,
                Feature.INIT,
                Feature.MERGE,
                Feature.UNMERGE,
                Feature.DISABLE,
                Feature.MULTI_ADAPTER,
                Feature.DELETE,
                Feature.RUNTIME_SCALE,
                Feature.TRAIN_STEP,
                Feature.PATTERNS,
                Feature.TIED,
                Feature.PEFT_LAYOUT,
            }
        ),
        gaps=GAPS,
        grouped_factors="block",
        zero_factor={"embedding": "a"},
        issues="https://github.com/huggingface/peft/issues",
        requires=("peft", "transformers"),
    ),
    layer=PeftLayer(),
    model=PeftModels(),
    store=PeftStore(),
)
