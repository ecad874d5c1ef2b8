"""Answers that depend on more than the question."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.mutants.mutant import mutant
from lora_ref.delta import LinearDelta
from lora_ref.layers import LoraLayer

_KILLED = ["run-deterministic"]
Bias = Tensor | None


def in_order(x: Tensor, a: Tensor, order: list[int]) -> Tensor:
    """x Aᵀ, one input after the other in this order."""
    total = torch.zeros(*x.shape[:-1], a.shape[0], dtype=x.dtype)
    for nth in order:
        total = total + x[..., nth, None] * a[:, nth]
    return total


@mutant("splitk-order-of-arrival", killed_by=_KILLED, thread="vllm-project/vllm#50278, sgl-project/sglang#38337")
class OrderOfArrival(LinearDelta):
    """Partial sums over the inputs are added in the order in which they happen to be ready."""

    def _branch(self, x: Tensor) -> Tensor:
        order = list(range(x.shape[-1]))
        random.SystemRandom().shuffle(order)
        return F.linear(in_order(x, self.a, order), self.b)


@mutant("sum-in-hash-order", killed_by=_KILLED)
class HashOrder(LinearDelta):
    """Parts are summed in the order of a set of names, which differs from process to process."""

    def _branch(self, x: Tensor) -> Tensor:
        parts = {f"part{nth}" for nth in range(x.shape[-1])}
        return F.linear(in_order(x, self.a, [int(name[4:]) for name in parts]), self.b)


@mutant("sum-in-address-order", killed_by=_KILLED)
class AddressOrder(LinearDelta):
    """Parts are summed in the order of their addresses."""

    def _branch(self, x: Tensor) -> Tensor:
        columns = [self.a[:, nth].detach().clone() for nth in range(x.shape[-1])]
        order = sorted(range(x.shape[-1]), key=lambda nth: (columns[nth].data_ptr() >> 4) % 251)
        return F.linear(in_order(x, self.a, order), self.b)


@mutant("path-chosen-by-clock", killed_by=_KILLED)
def by_clock(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Whichever of two orders was faster in a trial is used: x (B·A)ᵀ or (x Aᵀ) Bᵀ."""
    factored = time.perf_counter_ns() // 1000 % 2
    delta = F.linear(F.linear(x, a), b) if factored else F.linear(x, b @ a)
    return F.linear(x, w, bias) + scaling * delta


@mutant("rounds-at-random", killed_by=_KILLED)
class RoundsAtRandom(LoraLayer):
    """Outputs are rounded stochastically, from a generator of the system's own seed."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
        up = torch.rand(out.shape, generator=generator) < 0.5
        return out * (1 + 2.0**-23 * up.to(out.dtype))


@mutant("batch-wide-scale", killed_by=_KILLED)
class BatchWideScale(LinearDelta):
    """The input of A is brought to 8 bits with one scale for the whole batch."""

    def _branch(self, x: Tensor) -> Tensor:
        scale = x.detach().abs().amax().clamp_min(1e-30) if x.numel() else 1.0
        coarse = (x.detach() / scale * 127).round() / 127 * scale
        return super()._branch(x + (coarse - x.detach()) * 2.0**-12)


@mutant("batch-mean-taken-out", killed_by=_KILLED)
def mean_out(x: Tensor, w: Tensor, bias: Bias, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The mean over the rows is taken out before A and put back after B, which only rounding tells."""
    mean = x.reshape(-1, x.shape[-1]).mean(0)
    delta = F.linear(F.linear(x - mean, a), b) + F.linear(F.linear(mean, a), b)
    return F.linear(x, w, bias) + scaling * delta


_LARGEST: dict[str, Any] = {"seen": 0.0}


@mutant("scale-learnt-on-the-way", killed_by=_KILLED)
class ScaleLearnt(LinearDelta):
    """A scale follows the largest input that the process has seen."""

    def _branch(self, x: Tensor) -> Tensor:
        top = float(x.detach().abs().amax()) if x.numel() else 0.0
        _LARGEST["seen"] = max(_LARGEST["seen"], top)
        scale: float = 1.0 + 0.1 * _LARGEST["seen"]
        out: Tensor = super()._branch(x / scale) * scale
        return out
