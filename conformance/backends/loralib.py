"""Microsoft's loralib, the code of the LoRA paper: layers that subclass torch's and merge on eval()."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import loralib
import torch
from torch import nn

from conformance.contract import Backend, Feature, Gap, Manifest, Weights
from conformance.torch_arrays import torch_dtype
from conformance.torch_layer import Root, TorchLayer
from lora_ref.geometry import Embedding, Fused, Linear
from lora_ref.oracle import Numerics
from lora_ref.spec import LoraSpec


class LoralibLayer(TorchLayer):
    """``merge_weights`` is the library's own switch: with it on, eval() merges and train() unmerges."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        layer, plain = _make(spec, weights), root.layer
        layer.to(plain.weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(plain.weight)
            if weights.bias is not None:
                layer.bias.copy_(plain.bias)
        for factor in self.factors(layer, "default"):
            factor.data = factor.data.to(torch_dtype(weights.adapter_dtype))
        root.layer = layer
        loralib.mark_only_lora_as_trainable(root)

    def factors(self, layer: Any, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:  # noqa: ARG002 - it has one
        return layer.lora_A, layer.lora_B

    def base(self, layer: nn.Module) -> nn.Module:
        return layer

    def merge(self, root: Root) -> None:
        root.layer.merge_weights = True
        root.layer.eval()

    def unmerge(self, root: Root) -> None:
        root.layer.train()
        root.layer.merge_weights = False


def _make(spec: LoraSpec, weights: Weights) -> Any:
    g, scale = weights.geometry, {"r": spec.r, "lora_alpha": spec.alpha, "merge_weights": False}
    if isinstance(g, Embedding):
        return loralib.Embedding(g.num_embeddings, g.out_features, padding_idx=g.padding_idx, **scale)
    scale["lora_dropout"] = spec.dropout
    if isinstance(g, Fused):
        enabled, bias = list(g.enabled), weights.bias is not None
        return loralib.MergedLinear(g.in_features, g.out_features, enable_lora=enabled, bias=bias, **scale)
    assert isinstance(g, Linear)
    bias = weights.bias is not None
    return loralib.Linear(g.in_features, g.out_features, fan_in_fan_out=g.transposed, bias=bias, **scale)


_SQUARE: dict[str, Any] = {"in_features": 3, "out_features": 3, "r": 2, "alpha": 4.0}
GAPS = (
    Gap(
        "copy-independent",
        "never",
        "without dropout a layer keeps a lambda in its place, which cannot be pickled",
        case={**_SQUARE, "ranks": (3,), "alphas": (6.0,), "operations": ("write",), "pickled": True},
        where={"pickled": (True,)},
        raises="AttributeError",
    ),
    Gap(
        "saved-tensor-budget",
        "never",
        "MergedLinear forms B·A in every forward, and keeps it for backward beside x",
        case={
            **_SQUARE,
            "in_features": 16,
            "out_features": 4,
            "kind": "fused",
            "parts": (2, 2),
            "enabled": (True, False),
        },
        where={"kind": ("fused",)},
    ),
    Gap(
        "unmerge-restores-base",
        "never",
        "unmerging subtracts what merging added, so the base takes a random walk when the adapter changes in between",
        case={"in_features": 13, "out_features": 13, "r": 2, "alpha": 3.0, "tier": "bounded"},
        where={"tier": ("bounded",)},
    ),
    Gap(
        "merge-atomic",
        "never",
        "a NaN or infinite delta is merged like any other, and unmerging cannot take it out of the base again",
        case=_SQUARE,
    ),
    Gap(
        "merge-state-honest",
        "never",
        "A or B changed while merged: forward gives the old output, and unmerging subtracts the new delta",
        case={**_SQUARE, "headroom": 1, "operation": "rewrite"},
        where={"operation": ("rewrite",)},
    ),
    Gap(
        "precision-bound",
        "never",
        "the delta is formed in the dtype of A and B, so a merge in half precision rounds it before it is added",
        case={**_SQUARE, "tier": "bounded", "alpha": 3.0},
        dtypes=("bfloat16", "float16"),
    ),
)

backend = Backend(
    Manifest(
        name="loralib",
        version=version("loralib"),
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset(
            {
                Feature.TRANSPOSED,
                Feature.EMBEDDING,
                Feature.FUSED,
                Feature.BIAS,
                Feature.DROPOUT,
                Feature.INIT,
                Feature.COPY,
                Feature.SAVED_BYTES,
                Feature.MERGE,
                Feature.UNMERGE,
                Feature.TRAIN_STEP,
            }
        ),
        gaps=GAPS,
        fused_numerics=Numerics(order="weight"),
        zero_factor={"embedding": "a"},
        init={
            "linear": "kaiming_uniform_a5",
            "transposed": "kaiming_uniform_a5",
            "fused": "kaiming_uniform_a5",
            "embedding": "normal",
        },
        issues="https://github.com/microsoft/LoRA/issues",
        requires=("loralib",),
    ),
    layer=LoralibLayer(),
)
