"""Hugging Face PEFT: its LoRA layers, models and adapter files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from conformance.backends.peft_gaps import GAPS
from conformance.contract import Array, Backend, Feature, Manifest, Weights
from conformance.torch_arrays import to_torch, torch_dtype
from conformance.torch_batch import Serve, TorchBatch
from conformance.torch_layer import Root, TorchLayer
from conformance.torch_model import TorchModelHandle
from lora_ref.spec import LoraSpec


def config(spec: LoraSpec, targets: list[str], *, fan_in_fan_out: bool = False) -> LoraConfig:
    return LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        init_lora_weights=True if spec.init == "default" else spec.init,
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
        dora = adapter in root.layer.lora_magnitude_vector
        for factor in (*self.factors(root.layer, adapter), *([self.magnitude(root.layer, adapter)] if dora else [])):
            factor.data = factor.data.to(dtype)

    def base(self, layer: nn.Module) -> nn.Module:
        base = layer.base_layer
        assert isinstance(base, nn.Module)
        return base

    def factors(self, layer: Any, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        if adapter in layer.lora_embedding_A:
            return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight

    def magnitude(self, layer: Any, adapter: str) -> nn.Parameter:
        return layer.lora_magnitude_vector[adapter].weight  # type: ignore[no-any-return]

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

    def combine(self, root: Root, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        model: Any = _model(root).base_model
        model.add_weighted_adapter([*adapters], [*weights], name, combination_type="cat")  # "cat" alone is exact


def _config(root: Root, spec: LoraSpec) -> LoraConfig:
    return config(spec, ["layer"], fan_in_fan_out=isinstance(getattr(root.layer, "base_layer", root.layer), Conv1D))


def _model(root: Any) -> PeftModel:
    return root.peft


def _enable(model: PeftModel, on: bool) -> None:  # noqa: FBT001
    model.base_model.enable_adapter_layers() if on else model.base_model.disable_adapter_layers()


class PeftHandle(TorchModelHandle):
    """A PeftModel; its paths carry a prefix, and its base weights a ``base_layer``, that the contract does not."""

    module: Any
    first: dict[str, torch.Tensor] | None = None  # the adapter before training, where it started from the weight

    @property
    def prefix(self) -> str:
        return "base_model.model."

    def sites(self) -> Mapping[str, nn.Module]:
        named = self.module.named_modules()
        return {path.removeprefix(self.prefix): module for path, module in named if isinstance(module, LoraLayer)}

    def factors(self, path: str, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
        return PeftLayer().factors(self._at(path), adapter)

    def spec_at(self, path: str, adapter: str = "default") -> tuple[int, float]:
        layer = self._at(path)
        return layer.r[adapter], layer.scaling[adapter]

    def _at(self, path: str) -> Any:
        return self.module.get_submodule(self.prefix + path)

    def base_tensors(self) -> Mapping[str, torch.Tensor]:
        state = self.module.state_dict(keep_vars=True)
        plain = {k.removeprefix(self.prefix).replace(".base_layer.", "."): v for k, v in state.items()}
        return {k: v for k, v in plain.items() if ".lora_" not in k}

    def add(self, adapter: str, spec: LoraSpec) -> None:
        self.module.add_adapter(adapter, config(spec, list(spec.targets)))

    def activate(self, *adapters: str) -> None:
        self.module.base_model.set_adapter(list(adapters))

    def delete(self, adapter: str) -> None:
        self.module.delete_adapter(adapter)

    def enable(self, on: bool) -> None:  # noqa: FBT001
        _enable(self.module, on)

    def merge(self) -> None:
        self.module.merge_adapter()

    def unmerge(self) -> None:
        self.module.unmerge_adapter()

    def weight(self, path: str) -> torch.Tensor:
        return PeftLayer().weight(self._at(path))


class PeftModels:
    kind = PeftHandle

    def attach(self, module: nn.Module, spec: LoraSpec) -> PeftHandle:
        # float32 adapters over a narrower base are PEFT's default; here A and B follow the base, as the case asks
        handle = self.kind(get_peft_model(module, config(spec, list(spec.targets)), autocast_adapter_dtype=False))
        if spec.init != "default":
            handle.first = {key: value.clone() for key, value in get_peft_model_state_dict(handle.module).items()}
        return handle


class PeftStore:
    kind = PeftHandle

    def dump(self, handle: Any, folder: Path) -> None:
        if handle.first is None:
            handle.module.save_pretrained(folder)
            return
        # as documented: the adapter as it was before training is given, and the difference is saved
        with tempfile.TemporaryDirectory(prefix="lora-conformance-") as first:
            handle.module.save_pretrained(first)
            save_file(handle.first, Path(first) / "adapter_model.safetensors")
            handle.module.save_pretrained(folder, path_initial_model_for_weight_conversion=first)

    def load(self, module: nn.Module, folder: Path) -> PeftHandle:
        return self.kind(PeftModel.from_pretrained(module, folder, autocast_adapter_dtype=False))

    def add(self, handle: Any, folder: Path, adapter: str) -> None:
        handle.module.load_adapter(folder, adapter, autocast_adapter_dtype=False)


class PeftBatch(TorchBatch):
    """``adapter_names`` of a forward; "__base__" is the base alone."""

    def finish(self, root: Root) -> None:
        """For what is done to a model once all adapters are there."""

    def prepare(self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]]) -> Serve:
        named = {f"adapter{nth}": factors for nth, factors in enumerate(adapters)}
        layer = PeftLayer()
        root = Root(layer.base_module(weights))
        for name, (a, b) in named.items():
            own, dtype = replace(spec, r=a.shape[0]), torch_dtype(weights.adapter_dtype)
            if name == "adapter0":
                root.__dict__["peft"] = get_peft_model(root, _config(root, own), name, autocast_adapter_dtype=False)
                layer._cast(root, name, dtype)  # noqa: SLF001 - its own
            else:
                layer.add(root, name, own, dtype)
            with torch.no_grad():
                for live, value in zip(layer.factors(root.layer, name), (a, b), strict=True):
                    live.copy_(to_torch(value))
        self.finish(root)
        model = _model(root).eval()

        def serve(x: torch.Tensor, index: Sequence[int]) -> torch.Tensor:
            names = ["__base__" if nth == -1 else f"adapter{nth}" for nth in index]
            return model(x, adapter_names=names)  # type: ignore[no-any-return]

        return serve


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
                Feature.DORA,
                Feature.RESIDUAL_INIT,
                Feature.INIT,
                Feature.MERGE,
                Feature.UNMERGE,
                Feature.DISABLE,
                Feature.MULTI_ADAPTER,
                Feature.DELETE,
                Feature.RUNTIME_SCALE,
                Feature.COMBINE,
                Feature.COPY,
                Feature.SAVED_BYTES,
                Feature.CHECKPOINT,
                Feature.COMPILE,
                Feature.AUTOCAST,
                Feature.DISTRIBUTED,
                Feature.TRAIN_STEP,
                Feature.PATTERNS,
                Feature.TIED,
                Feature.PEFT_LAYOUT,
                Feature.LOAD_BESIDE,
            }
        ),
        gaps=GAPS,
        grouped_factors="block",
        dora_dropout="change",
        zero_factor={"embedding": "a"},
        init={
            "linear": "kaiming_uniform_a5",
            "transposed": "kaiming_uniform_a5",
            "conv": "kaiming_uniform_a5",
            "embedding": "normal",
        },
        issues="https://github.com/huggingface/peft/issues",
        requires=("peft", "transformers"),
    ),
    layer=PeftLayer(),
    model=PeftModels(),
    store=PeftStore(),
    batch=PeftBatch(),
)
