"""Will it fit, and what will it cost: one training step of a whole language model, simulated on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.models import targets_of
from bench.simulate import roofline
from bench.simulate.adapter_file import file_bytes
from bench.simulate.devices import Gpu
from bench.simulate.fake import faking, make_fake
from bench.simulate.language import language_model
from bench.simulate.step import Step, take
from bench.simulate.tracker import Category
from conformance.discovery import UsageError, load
from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec
from lora_ref.targets import select


@dataclass(frozen=True)
class Setting:
    """targets: suffixes of module paths; empty for all projections of attention and feed-forward blocks."""

    model: str
    backend: str
    r: int
    batch: int
    seq: int
    alpha: float = 32.0
    dtype: str = "bfloat16"
    adapter_dtype: str = "bfloat16"
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak by category, which sum up to ``peak``; FLOPs, operations and seconds of one step.

    The optimiser is torch's fused AdamW, with two states in the dtype of each parameter that it trains. All of it is
    what any step but the first takes: the states are there from the start, and gradients start from None.
    seconds: a lower bound, see ``bench.simulate.roofline``. memory_bound: the share of it in which bytes are the limit.
    file_bytes: of the adapter alone; None without one.
    """

    method: str  # "LoRA" or "full"
    checkpointing: bool
    memory: Mapping[Category, int]
    peak: int
    flops: int
    n_ops: int
    seconds: float
    memory_bound: float
    tokens: int
    total_params: int
    trainable_params: int
    file_bytes: int | None

    @property
    def tokens_s(self) -> float:
        """An upper bound."""
        return self.tokens / self.seconds

    def fits(self, gpu: Gpu) -> bool:
        """In all of its memory; the driver's context and fragmentation need some of it too."""
        return self.peak <= gpu.memory


def lora(setting: Setting, gpu: Gpu, *, checkpointing: bool) -> Estimate:
    """Fine-tuning with the backend's LoRA.

    Raises:
        UsageError: see ``language_model``; an unknown backend, one without the Model facet, targets that do not exist.
    """
    backend = load(setting.backend)
    if backend.model is None:
        raise UsageError(f"backend {setting.backend!r} has no Model facet: it adapts single layers only")
    if setting.dtype not in backend.manifest.dtypes:
        raise UsageError(
            f"backend {setting.backend!r} serves {', '.join(backend.manifest.dtypes)}, not {setting.dtype}"
        )
    model = language_model(setting.model, setting.dtype, setting.seq, checkpointing=checkpointing)
    model.requires_grad_(requires_grad=False)
    targets = setting.targets or targets_of(model)
    try:
        paths = select(targets, [path for path, module in model.named_modules() if isinstance(module, nn.Linear)])
        spec = LoraSpec(setting.r, setting.alpha, targets=targets)
    except LoraError as error:
        raise UsageError(str(error)) from None
    weights = {path: tuple(model.get_submodule(path).weight.shape) for path in paths}
    module = backend.model.attach(model, spec).module
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, setting.adapter_dtype))
    size = file_bytes(weights, setting.r, setting.adapter_dtype)
    return _estimate("LoRA", setting, gpu, module, size, checkpointing=checkpointing)


def full(setting: Setting, gpu: Gpu, *, checkpointing: bool) -> Estimate:
    """Fine-tuning all parameters, in the model's own dtype: no float32 master copy.

    Raises:
        UsageError: see ``language_model``.
    """
    model = language_model(setting.model, setting.dtype, setting.seq, checkpointing=checkpointing)
    return _estimate("full", setting, gpu, model, None, checkpointing=checkpointing)


def _estimate(
    method: str, setting: Setting, gpu: Gpu, module: Any, size: int | None, *, checkpointing: bool
) -> Estimate:
    step = _step(module, setting)
    seconds = [roofline.seconds(work, gpu) for work in step.works]
    bound = [roofline.bound(work, gpu) for work in step.works]
    return Estimate(
        method=method,
        checkpointing=checkpointing,
        memory=step.tracker.at_peak(),
        peak=step.tracker.peak,
        flops=step.flops,
        n_ops=sum(work.n_ops for work in step.works),
        seconds=sum(seconds),
        memory_bound=sum(s * b for s, b in zip(seconds, bound, strict=True)) / sum(seconds),
        tokens=setting.batch * setting.seq,
        total_params=sum(p.numel() for p in module.parameters()),
        trainable_params=sum(p.numel() for p in module.parameters() if p.requires_grad),
        file_bytes=size,
    )


def _step(module: Any, setting: Setting) -> Step:
    mode = FakeTensorMode()
    make_fake(module, mode)
    with faking(mode):
        ids = torch.zeros(setting.batch, setting.seq, dtype=torch.int64)  # (batch, seq)
        optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
        inputs = {"input_ids": ids, "labels": ids}
        return take(module, lambda given: module(**given).loss, inputs, optimiser=optimiser)
