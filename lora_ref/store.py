"""Adapter files in PEFT's layout: adapter_config.json and adapter_model.safetensors, whole and strict or not at all.

Source: huggingface/peft, "PEFT checkpoint format" (docs/source/developer_guides/checkpoint.md). Saving takes A, B and
the spec as they are, merged or not. Loading applies every tensor of the file or raises before the model is touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_ref.delta import ConvDelta, Delta, EmbeddingDelta, FusedDelta, LinearDelta
from lora_ref.errors import LoraError
from lora_ref.model import Adapted, LoraModel
from lora_ref.spec import LoraSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Keys of a config that say nothing about what the adapter computes, or that are read below.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"}
READ |= {"bias", "init_lora_weights"}
SILENT = {"auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "megatron_core"}
SILENT |= {"peft_version", "qalora_group_size", "revision", "task_type"}


def save(model: Adapted, folder: str | Path, name: str = "default") -> None:
    """Write one adapter; the folder appears complete or not at all.

    Raises:
        LoraError: a branch that PEFT's layout cannot hold, a folder that is not empty, a scale other than 1.
    """
    folder, spec, deltas = Path(folder), model.spec(name), model.deltas(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LoraError(f"{folder} exists already; adapters are never written over")
    tensors = {}
    for path, delta in deltas.items():
        if delta.factor != 1:
            raise LoraError(f"adapter {name!r} is scaled by {delta.factor}, which no file can hold; set_scale to 1 first")
        for key, factor in zip(_keys(path, delta), (delta.a, delta.b), strict=True):
            tensors[key] = factor.detach().cpu().contiguous()
    _check_patterns(spec, deltas)
    config = _config(spec, transposed=all(getattr(delta, "transposed", False) for delta in deltas.values()))
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        (part / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load[A: Adapted](
    module: nn.Module, folder: str | Path, name: str = "default", *, trainable: bool = False, kind: type[A] = LoraModel
) -> A:
    ...
