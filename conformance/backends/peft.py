"""Hugging Face PEFT: its LoRA layers, models and adapter files."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from conformance.contract import Backend, Feature, Manifest, Weights
from conformance.torch_arrays import torch_dtype
from conformance.torch_layer import Root, TorchLayer
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
    conv1d = Conv1D

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        root.layer.requires_grad_(requires_grad=False)  # get_peft_model freezes the base; injecting alone does not
        self.add(root, "default", spec, torch_dtype(weights.adapter_dtype))

    def add(self, root: Root, adapter: str, spec: LoraSpec, dtype: torch.dtype) -> None:
        base = self.base(root.layer)
        cfg = config(spec, ["layer"], fan_in_fan_out=isinstance(base, Conv1D))
        inject_adapter_in_model(cfg, root, adapter_name=adapter)
        for factor in self.factors(root.layer, adapter):
            factor.data = factor.data.to(dtype)

    def base(self, layer: nn.Module) -> nn.Module:
        base = getattr(layer, "base_layer", layer)
        assert isinstance(base, nn.Module)
        return base

    def factors(self, layer: Any, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        if adapter in layer.lora_embedding_A:
            return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight

    def enable(self, layer: Any, on: bool) -> None:  # noqa: FBT001
        layer.enable_adapters(on)

    def activate(self, layer: Any, *adapters: str) -> None:
        layer.set_adapter(list(adapters))

    def delete(self, layer: Any, adapter: str) -> None:
        layer.delete_adapter(adapter)

    def set_scale(self, layer: Any, factor: float, adapter: str) -> None:
        layer.set_scale(adapter, factor)


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
            }
        ),
        grouped_factors="block",
        zero_factor={"embedding": "a"},
        issues="https://github.com/huggingface/peft/issues",
        requires=("peft", "transformers"),
    ),
    layer=PeftLayer(),
)
