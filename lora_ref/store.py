"""Adapter files in PEFT's layout: adapter_config.json and adapter_model.safetensors, whole and strict or not at all.

Source: huggingface/peft, "PEFT checkpoint format" (docs/source/developer_guides/checkpoint.md). Saving takes the spec,
A and B as they are, merged or not. Loading applies every tensor of the file, or raises before the model is touched.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_ref.delta import ConvDelta, Delta, EmbeddingDelta, FusedDelta, read_weight
from lora_ref.errors import LoraError
from lora_ref.expert_delta import ExpertDelta
from lora_ref.model import Adapted, LoraModel
from lora_ref.spec import LoraSpec
from lora_ref.variants import DoraDelta

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"}
READ |= {"use_dora", "target_parameters"}
HARMLESS = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}  # other initialisations change the base
# What says nothing about the function that the adapter computes; the kind of each base decides its layout.
IGNORED = {"peft_version", "base_model_name_or_path", "revision", "auto_mapping", "task_type", "inference_mode"}
IGNORED |= {"fan_in_fan_out", "megatron_core", "qalora_group_size"}

A = TypeVar("A", bound=Adapted)


def save(model: Adapted, folder: str | Path, name: str = "default") -> None:
    """Write one adapter; the folder appears complete or not at all.

    Raises:
        LoraError: a folder that is not empty, a branch or a run-time scale that the layout cannot hold.
    """
    folder, spec, deltas = Path(folder), model.spec(name), model.deltas(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LoraError(f"{folder} exists and is not an empty folder; nothing is ever written over")
    for path, delta in deltas.items():
        if isinstance(delta, FusedDelta) or (isinstance(delta, ConvDelta) and delta.groups > 1):
            raise LoraError(f"PEFT's layout has no place for the {type(delta).__name__} at {path}: parts or groups")
        if delta.factor != 1:
            raise LoraError(f"{name!r} is scaled by {delta.factor} at {path}, which no file can hold: set_scale to 1")
        if delta.spec.dropout and isinstance(delta, ExpertDelta):
            raise LoraError(f"PEFT has no dropout for the experts at {path} and would refuse the file")
    spec = _ordered(_plain(spec, deltas))
    _check_reading(spec, deltas)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        tensors = {key: t.detach().cpu().contiguous() for key, t in _keys(deltas, whole=True).items()}
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        (part / CONFIG).write_text(json.dumps(_config(spec, deltas), indent=2) + "\n", encoding="utf-8")
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part)
        raise


def load(
    module: nn.Module,
    folder: str | Path,
    name: str = "default",
    *,
    trainable: bool = False,
    dtype: torch.dtype | None = None,
    kind: type[A] = LoraModel,  # type: ignore[assignment]
) -> A:
    """Attach the adapter in ``folder``, in the file's dtype or in ``dtype``; ``kind=HookedModel`` attaches by hooks.

    Raises:
        LoraError: anything missing, foreign, of another shape, not finite, pickled or not supported.
            The module is unchanged then.
    """
    folder, model = Path(folder), kind(module)
    spec = _read_spec(folder)
    tensors = _read_tensors(folder)
    deltas, bases = model.plan(name, spec), model.bases()
    _check_reading(spec, deltas)
    _drop_copies(tensors, {path: read_weight(bases[path]) for path in deltas})
    _unpack(tensors, deltas)
    wanted = _keys(deltas)
    _refuse("lacks", wanted.keys() - tensors.keys())
    _refuse("has foreign tensors:", tensors.keys() - wanted.keys())
    for key, tensor in tensors.items():
        if tensor.shape != wanted[key].shape:
            raise LoraError(f"{key} has shape {tuple(tensor.shape)}, the module asks for {tuple(wanted[key].shape)}")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise LoraError(f"{key} holds values that are not finite floating-point numbers")
        if wanted[key].is_meta:
            raise LoraError(f"{key} cannot be loaded on the meta device, which holds no values")
    for key, factor in wanted.items():
        factor.data = tensors[key].to(factor.device, dtype)
    model.add(name, spec, deltas, trainable=trainable)
    return model


def _keys(deltas: Mapping[str, Delta], *, whole: bool = False) -> dict[str, Tensor]:
    """Each factor by its name in the file: the live ones, or those of the ``whole`` delta."""
    keys: dict[str, Tensor] = {}
    for path, delta in deltas.items():
        form = "lora_embedding_{}" if isinstance(delta, EmbeddingDelta) else "lora_{}.weight"
        a, b = delta.factors() if whole else (delta.a, delta.b)
        keys[f"base_model.model.{path}.{form.format('A')}"] = a
        keys[f"base_model.model.{path}.{form.format('B')}"] = b
        if isinstance(delta, DoraDelta):
            keys[f"base_model.model.{path}.lora_magnitude_vector"] = delta.m
    return keys


def _plain(spec: LoraSpec, paths: Iterable[str]) -> LoraSpec:
    """The plain LoRA of twice the rank that a residually initialised adapter is, with the same s at each path.

    rsLoRA's s depends on the root of the rank, so its alphas are written out for alpha/r, by path where they differ.
    """
    if spec.init == "default":
        return spec
    ranks = {key: 2 * r for key, r in spec.rank_pattern.items()}
    twice = replace(spec, init="default", r=2 * spec.r, rank_pattern=ranks)
    if not spec.rslora:
        return replace(twice, alpha=2 * spec.alpha, alpha_pattern={k: 2 * v for k, v in spec.alpha_pattern.items()})
    each = {path: spec.at(path).scaling * 2 * spec.at(path).r for path in paths}
    alphas = each if spec.rank_pattern or spec.alpha_pattern else {}
    return replace(twice, rslora=False, alpha=spec.scaling * 2 * spec.r, alpha_pattern=alphas)


def _config(spec: LoraSpec, deltas: Mapping[str, Delta]) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": spec.r,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        **_targets(spec, deltas),
        "rank_pattern": dict(spec.rank_pattern),
        "alpha_pattern": dict(spec.alpha_pattern),
        "fan_in_fan_out": any(getattr(delta, "transposed", False) for delta in deltas.values()),
        "bias": "none",
        "init_lora_weights": True,
    }


def _targets(spec: LoraSpec, deltas: Mapping[str, Delta]) -> dict[str, list[str]]:
    """A stack of experts is a parameter for PEFT and no module; beside one, every target has its whole path."""
    stacks = [path for path, delta in deltas.items() if isinstance(delta, ExpertDelta)]
    if not stacks:
        return {"target_modules": list(spec.targets)}
    modules = [path for path in deltas if path not in stacks]
    return {"target_modules": modules, "target_parameters": [f"{path}.weight" for path in stacks]}


def _read_spec(folder: Path) -> LoraSpec:
    config = _read_config(folder)
    if config.get("peft_type") != "LORA":
        raise LoraError(f"{CONFIG} describes {config.get('peft_type')!r}, not 'LORA'")
    for key, value in config.items():
        if value not in HARMLESS[key] if key in HARMLESS else value and key not in READ | IGNORED:
            raise LoraError(f"{CONFIG} uses {key}={value!r}, which is not supported")
    if lacking := sorted({"r", "lora_alpha", "target_modules"} - config.keys()):
        raise LoraError(f"{CONFIG} lacks {', '.join(lacking)}")
    targets, parameters = config["target_modules"], config.get("target_parameters") or []
    numbers = [config["lora_alpha"], config.get("lora_dropout", 0.0)]
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    flags = {key: config.get(key, False) for key in ("use_rslora", "use_dora")}
    if wrong := [f"{key}={value!r}" for key, value in flags.items() if not isinstance(value, bool)]:
        raise LoraError(f"{wrong[0]} must be true or false")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise LoraError(f"target_modules must be a list of path suffixes, got {targets!r}")
    if not isinstance(parameters, list) or not all(str(name).endswith(".weight") for name in parameters):
        raise LoraError(f"target_parameters must be a list of paths that end in .weight, got {parameters!r}")
    if not all(isinstance(pattern, dict) for pattern in patterns):
        raise LoraError("rank_pattern and alpha_pattern must map path suffixes to numbers")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in [*numbers, *patterns[1].values()]):
        raise LoraError("lora_alpha, lora_dropout and the values of alpha_pattern must be numbers")
    return LoraSpec(
        r=config["r"],
        alpha=config["lora_alpha"],
        rslora=flags["use_rslora"],
        dora=flags["use_dora"],
        dropout=config.get("lora_dropout", 0.0),
        targets=(*targets, *(name.removesuffix(".weight") for name in parameters)),
        rank_pattern=patterns[0],
        alpha_pattern=patterns[1],
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoraError(f"{folder} has no {CONFIG}") from error
    except ValueError as error:  # not UTF-8 or not JSON
        raise LoraError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise LoraError(f"{folder / CONFIG} is not a JSON object")
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).exists():
            raise LoraError(f"{PICKLE} is a pickle, which runs code when read: convert it to safetensors")
        raise LoraError(f"{folder} has no {WEIGHTS}")
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise LoraError(f"{folder / WEIGHTS} is damaged: {error}") from error


def _drop_copies(tensors: dict[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """PEFT saves an adapted embedding's W beside A and B; it must be the W that is here, and says nothing then."""
    for path, weight in weights.items():
        copy = tensors.pop(key := f"base_model.model.{path}.base_layer.weight", weight)
        if copy is not weight and (copy.dtype != weight.dtype or not torch.equal(copy, weight.cpu())):
            raise LoraError(f"{key} is not the weight of the module at {path}: the adapter is for another base")


def _unpack(tensors: dict[str, Tensor], deltas: Mapping[str, Delta]) -> None:
    """PEFT's matrices for all experts of a stack, as one A and one B for each."""
    for path, delta in deltas.items():
        a, b = (f"base_model.model.{path}.lora_{name}.weight" for name in "AB")
        if isinstance(delta, ExpertDelta) and {a, b} <= tensors.keys():
            tensors[a], tensors[b] = delta.unpacked(tensors[a], tensors[b])


def _refuse(what: str, keys: Iterable[str]) -> None:
    if found := sorted(keys):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise LoraError(f"{WEIGHTS} {what} {', '.join(found[:3])}{more}")


def _ordered(spec: LoraSpec) -> LoraSpec:
    """The same spec, the longest key of each pattern first: PEFT takes the first match, this package the longest."""
    ranks, alphas = (sorted(pattern, key=len, reverse=True) for pattern in (spec.rank_pattern, spec.alpha_pattern))
    return replace(
        spec,
        rank_pattern={key: spec.rank_pattern[key] for key in ranks},
        alpha_pattern={key: spec.alpha_pattern[key] for key in alphas},
    )


def _check_reading(spec: LoraSpec, deltas: Mapping[str, Delta]) -> None:
    """PEFT reads a pattern's keys as regular expressions and takes the first match: refuse what that would change."""
    for path, delta in deltas.items():
        name = f"{path}.weight" if isinstance(delta, ExpertDelta) else path
        theirs = [
            next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)
            for pattern, default in ((spec.rank_pattern, spec.r), (spec.alpha_pattern, spec.alpha))
        ]
        ours = [spec.at(path).r, spec.at(path).alpha]
        if theirs != ours:
            raise LoraError(f"PEFT reads these patterns otherwise at {path}: r, alpha = {theirs} instead of {ours}")
