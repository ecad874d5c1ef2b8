"""PEFT's adapter files, written and read without any LoRA library: the outside view that ``interop`` judges by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from conformance.contract import Array
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref.spec import LoraSpec

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
NOWHERE = "only modules that are not there"
Factors = Mapping[str, tuple[Array, ...]]  # path -> (A, B)


@dataclass(frozen=True)
class Saved:
    spec: LoraSpec
    factors: dict[str, tuple[Array, Array]]


def write_adapter(folder: Path, spec: LoraSpec, factors: Factors) -> None:
    folder.mkdir(parents=True)
    tensors = {}
    for path, (a, b) in factors.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = to_torch(a).contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = to_torch(b).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": spec.r,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.rslora,
        "lora_dropout": spec.dropout,
        "target_modules": list(spec.targets),
        "rank_pattern": dict(spec.rank_pattern),
        "alpha_pattern": dict(spec.alpha_pattern),
        "bias": "none",
        "fan_in_fan_out": False,
        "task_type": None,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def read_adapter(folder: Path) -> Saved:
    """What the files say.

    Raises:
        OSError, ValueError: they are not there, or not in this layout.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    spec = LoraSpec(
        r=config["r"],
        alpha=config["lora_alpha"],
        rslora=config.get("use_rslora", False),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
    )
    found: dict[str, dict[str, Array]] = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        path, factor = key.removeprefix(PREFIX).removesuffix(".weight").rsplit(".", 1)
        found.setdefault(path, {})[factor] = to_numpy(tensor)
    return Saved(spec, {path: (pair["lora_A"], pair["lora_B"]) for path, pair in found.items()})


class Damage(StrEnum):
    """What can be wrong with a file of tensors; the config stays right."""

    TRUNCATED = "half of its bytes"
    EMPTY = "no tensors"
    MISSING = "a tensor missing"
    FOREIGN = "a tensor too many"
    SHAPE = "a tensor of a wrong shape"
    PREFIX = "another prefix on every name"


def damage(folder: Path, kind: Damage) -> None:
    file = folder / WEIGHTS
    if kind is Damage.TRUNCATED:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        return
    tensors = load_file(file)
    first = min(tensors)
    if kind is Damage.EMPTY:
        tensors = {}
    elif kind is Damage.MISSING:
        del tensors[first]
    elif kind is Damage.FOREIGN:
        tensors[f"{PREFIX}nowhere.lora_A.weight"] = torch.ones(1, 1)
    elif kind is Damage.SHAPE:
        tensors[first] = torch.ones(tensors[first].shape[0] + 1, tensors[first].shape[1])
    else:
        tensors = {key.replace(PREFIX, "transformer."): value for key, value in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
