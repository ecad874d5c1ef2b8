"""Where LoRA beats full fine-tuning on one linear layer, over its width, the tokens of a step, and the rank.

FLOPs of a step with M tokens on a K x N layer: LoRA 4MKN + 6MKr + 6MrN, full fine-tuning 6MKN, so LoRA has fewer where
r < KN / (3 (K + N)), whatever M. Time is another matter: LoRA's own products have r columns, its scaling and its sum
read and write (M, N) again, and all of that is bound by memory; full fine-tuning instead writes a gradient of W's size
and reads and writes two states of it. Both are simulated: the operations that a backend really dispatches, each at its
roofline, and a step of fused AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.cases import Case, Mode
from bench.nets import build
from bench.simulate import roofline
from bench.simulate.devices import Gpu
from bench.simulate.fake import faking, make_fake
from bench.simulate.step import Step, take
from bench.subject import UnsupportedError, adapted
from conformance.discovery import UsageError, load


@dataclass(frozen=True)
class Cell:
    """A square layer, hidden x hidden, in the middle of a model: the gradient of x is wanted too.

    flops_ratio, time_ratio, peak_ratio, ops_ratio: of LoRA over full fine-tuning; below 1 LoRA is better. The peak is
    that of memory, with W, its gradient and AdamW's states.
    """

    hidden: int
    tokens: int
    rank: int
    lora_flops: int
    full_flops: int
    lora_seconds: float
    full_seconds: float
    peak_ratio: float
    ops_ratio: float

    @property
    def flops_ratio(self) -> float:
        return self.lora_flops / self.full_flops

    @property
    def time_ratio(self) -> float:
        return self.lora_seconds / self.full_seconds

    @property
    def slower_with_fewer(self) -> bool:
        """More time for fewer FLOPs."""
        return self.time_ratio > 1 > self.flops_ratio


def cells(
    backend: str, gpu: Gpu, hidden: Sequence[int], tokens: Sequence[int], ranks: Sequence[int], dtype: str
) -> Iterator[Cell]:
    """One for each combination; W, A, B and the states of AdamW in ``dtype``.

    Raises:
        UsageError: the backend does not offer it, has no Model facet, or does not exist.
    """
    if load(backend).model is None:
        raise UsageError(f"backend {backend!r} has no Model facet")
    for width, rows in product(hidden, tokens):
        case = Case("square", "q", width, width, 1, 1, rows, Mode.STEP, base_dtype=dtype, adapter_dtype=dtype)
        full = _full(case)
        for rank in ranks:
            lora = _lora(replace(case, rank=rank), backend)
            yield Cell(
                width,
                rows,
                rank,
                lora.flops,
                full.flops,
                sum(roofline.seconds(work, gpu) for work in lora.works),
                sum(roofline.seconds(work, gpu) for work in full.works),
                lora.tracker.peak / full.tracker.peak,
                sum(work.n_ops for work in lora.works) / sum(work.n_ops for work in full.works),
            )


def _full(case: Case) -> Step:
    module = build(case, "meta").module.requires_grad_()
    return _step(case, module)


def _lora(case: Case, backend: str) -> Step:
    try:
        return _step(case, adapted(case, backend, "meta").module)
    except UnsupportedError as error:
        raise UsageError(f"backend {backend!r}: {error}") from None


def _step(case: Case, module: torch.nn.Module) -> Step:
    mode = FakeTensorMode()
    make_fake(module, mode)
    with faking(mode):
        inputs = build(case).inputs(0)  # x (1, tokens, hidden)
        dy = torch.ones_like(inputs["x"])
        optimiser = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
        return take(module, lambda given: module(given["x"]), inputs, dy, optimiser)
