"""The kernels' results against the closed form in float64, to the bit in the exact tier; all operands lie among NaN."""

from __future__ import annotations

import addresses
import numpy as np
import torch
from kernel_cases import MANIFEST
from poison import Poison

from conformance.cases import Case
from conformance.judge import Judge
from conformance.routed import Routed, as_index
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref import rounding
from lora_ref.fused.kernels import Routing, Stacked, lora_linear, routed_linear


def judge_linear(case: Case, device: str, *, reverse: bool = False) -> None:
    """Output, gradients and dtypes; all operands lie among NaN, with their axes in order in memory or reversed."""
    at, poison, judge, exact = case.arrays, Poison(device), Judge(), case.tier == "exact"
    x, w, a, b, dy = (poison.place(v, reverse=reverse) for v in (at.x, at.w, at.a, at.b, at.dy))
    bias = None if at.bias is None else poison.place(at.bias)
    for leaf in (x, a, b):
        leaf.requires_grad_()
    with addresses.checked():
        y = lora_linear(x, w, bias, a, b, case.spec.scaling)
        y.backward(dy)
    oracle = case.oracle(MANIFEST)
    expected = oracle.gradients(at.x, at.dy)
    assert expected.x is not None
    judge("y", to_numpy(y), oracle.forward(at.x), exact=exact)
    for name, leaf, want in (("dx", x, expected.x), ("dA", a, expected.a), ("dB", b, expected.b)):
        judge(name, to_numpy(leaf.grad), want, exact=exact)
        assert leaf.grad.dtype is leaf.dtype
    assert y.dtype is x.dtype
    assert poison.is_untouched()


def judge_routed(case: Routed, device: str, *, reverse: bool) -> None:
    at, poison, judge, index = case.arrays, Poison(device), Judge(), as_index(case.index)
    x, w, dy = (poison.place(v, reverse=reverse) for v in (at.x, at.w, at.dy))
    bias = None if at.bias is None else poison.place(at.bias)
    adapters = stacked(case, poison)
    for leaf in (x, adapters.a, adapters.b):
        leaf.requires_grad_()
    with addresses.checked():
        y = routed_linear(x, w, bias, adapters, Routing.of(case.index, len(case.adapters), device))
        y.backward(dy)
    judge("y", to_numpy(y), case.expected(MANIFEST, index, at.x), exact=True)
    dx = at.dy.astype(np.float64) @ at.w.astype(np.float64)  # of rows without an adapter
    for nth, (spec, _, _) in enumerate(case.adapters):
        served, r = index == nth, spec.r
        expected = case.oracle_at(nth, MANIFEST).gradients(at.x[served], at.dy[served])
        assert expected.x is not None
        dx[served] = expected.x.value
        judge(f"dA of {nth}", to_numpy(adapters.a.grad[nth, :r]), expected.a, exact=True)
        judge(f"dB of {nth}", to_numpy(adapters.b.grad[nth, :, :r]), expected.b, exact=True)
        assert not adapters.a.grad[nth, r:].any()
        assert not adapters.b.grad[nth, :, r:].any()
    judge("dx", to_numpy(x.grad), rounding.exact(dx), exact=True)
    assert poison.is_untouched()


def stacked(case: Routed, poison: Poison) -> Stacked:
    """The case's adapters; what lies beyond their own ranks is NaN, and so is what lies around all of them."""
    plain = Stacked.of([(to_torch(a), to_torch(b), spec.scaling) for spec, a, b in case.adapters])
    for nth, (spec, _, _) in enumerate(case.adapters):
        plain.a[nth, spec.r :] = plain.b[nth, :, spec.r :] = torch.nan
    device = poison.device
    return Stacked(poison.place(plain.a), poison.place(plain.b), plain.ranks.to(device), plain.scalings.to(device))
