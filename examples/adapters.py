"""Adapters of a model, seen through any backend that has a Model facet: put on, measured, saved and read back.

With ``--backend reference`` attaching is ``lora_ref.model.attach``, with ``hooks`` ``lora_ref.hooks.attach_hooks``.
Files are in PEFT's layout, whatever the backend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from run_folder import whole
from safetensors import SafetensorError
from torch import nn

from conformance.contract import Backend, Feature, ModelHandle
from conformance.discovery import UsageError
from conformance.discovery import load as load_backend
from conformance.peft_layout import WEIGHTS, read_adapter, write_adapter
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref.errors import LoraError
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec
from lora_ref.targets import matches, select

FAMILIES = (  # query, key, value, and the feed-forward layers
    ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),  # Llama and its kin
    ("query", "key", "value", "intermediate.dense", "{}.output.dense"),  # BERT: the {}th layer's own, not attention's
    ("q_lin", "k_lin", "v_lin", "lin1", "lin2"),  # DistilBERT
    ("c_attn", "c_fc", "mlp.c_proj"),  # GPT-2: one module is query, key and value
)


def backend_named(name: str) -> Backend:
    """Any registered backend, or package.module:object.

    Raises:
        UsageError, LoadError: no such backend, or none for whole models.
    """
    backend = load_backend(name)
    if backend.model is None:
        raise UsageError(f"backend {name!r} adapts no whole models (it has no Model facet); reference, hooks, peft do")
    return backend


def spec_for(module: nn.Module, r: int, alpha: float, targets: Sequence[str]) -> LoraSpec:
    """On ``targets``, by default query, key, value and feed-forward layers of the known families.

    Raises:
        UsageError: a target that is not there, a model of no known family, an alpha that is not positive.
    """
    try:
        spec = LoraSpec(r, alpha, targets=tuple(targets) or _found(module))
        select(spec.targets, LoraModel(module).bases())
    except LoraError as error:
        raise UsageError(str(error)) from None
    return spec


def _found(module: nn.Module) -> tuple[str, ...]:
    """Suffixes that all match something."""
    paths, layers = LoraModel(module).bases(), getattr(getattr(module, "config", None), "num_hidden_layers", 0)
    for family in FAMILIES:
        each = [[name.format(nth) for nth in range(layers)] if "{}" in name else [name] for name in family]
        names = tuple(name for numbered in each for name in numbered)
        if all(any(matches(name, path) for path in paths) for name in names):
            return names
    known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths})) or "none"
    raise UsageError(f"no query, key and value of a known name in this model: give --target; there are: {known}")


class TaskAdapters:
    """A model with one adapter for each task. All of them are put on at once, so that no later one disturbs another."""

    def __init__(self, backend: Backend, module: nn.Module, spec: LoraSpec, tasks: Sequence[str], seed: int) -> None:
        self.spec, self.tasks, self.parameters = spec, tuple(tasks), sum(p.numel() for p in module.parameters())
        self.bytes = sum(p.numel() * p.element_size() for p in module.parameters())
        self.switchable = Feature.MULTI_ADAPTER in backend.manifest.features
        self.disables = Feature.DISABLE in backend.manifest.features
        assert backend.model is not None
        torch.manual_seed(seed)  # A is drawn; B is zero, so that the model begins as it was
        self.handle: ModelHandle = backend.model.attach(module, spec)
        for nth in range(1, len(tasks)):
            self.handle.add(_name(nth), spec)

    @property
    def module(self) -> Any:
        return self.handle.module

    def activate(self, task: str) -> None:
        """Apply and train the adapter of this task, and no other, from now on."""
        if self.switchable:
            self.handle.activate(_name(self.tasks.index(task)))

    def factors(self, task: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The live A and B by path."""
        adapter = _name(self.tasks.index(task))
        return {path: self.handle.factors(path, adapter) for path in self.handle.sites()}

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def base(self) -> str:
        """A digest of all frozen tensors: whose adapters these are, and whether training left the base alone."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.handle.base_tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def save(self, task: str, folder: Path) -> None:
        factors = {path: tuple(map(to_numpy, pair)) for path, pair in self.factors(task).items()}
        with whole(folder) as part:
            write_adapter(part, self.spec, factors)

    def restore(self, task: str, folder: Path) -> None:
        """Copy saved factors into the live ones, all or none.

        Raises:
            UsageError: files that are damaged, or of another model.
        """
        try:
            saved = read_adapter(folder).factors
        except (OSError, ValueError, KeyError, SafetensorError):
            raise UsageError(f"{folder} holds no adapter that can be read") from None
        live = self.factors(task)
        shapes = {path: tuple(factor.shape for factor in pair) for path, pair in live.items()}
        if shapes != {path: tuple(factor.shape for factor in pair) for path, pair in saved.items()}:
            raise UsageError(f"{folder} is the adapter of another model, or of other targets or ranks")
        with torch.no_grad():
            for path, pair in live.items():
                for factor, value in zip(pair, saved[path], strict=True):
                    factor.copy_(to_torch(value))

    def figures(self, task: str, folder: Path) -> dict[str, float]:
        """What is trained and what is saved, against the model."""
        count = sum(factor.numel() for pair in self.factors(task).values() for factor in pair)
        return {
            "model parameters": self.parameters,
            "trainable parameters": count,
            "trainable share": count / (self.parameters + count),
            "model bytes": self.bytes,
            "adapter bytes": (folder / WEIGHTS).stat().st_size,
        }


def _name(nth: int) -> str:
    """The first adapter of a model is called so by the contract."""
    return f"task{nth}" if nth else "default"
