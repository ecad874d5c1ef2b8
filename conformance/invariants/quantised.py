"""A base whose weight is stored in few bits: the adapter beside it, and what a merge may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Handle, Tensor
from conformance.invariant import invariant
from conformance.invariants.gradients import judge_gradients
from conformance.invariants.merge import refuses
from conformance.quantiser import BLOCK, dequantise, largest, quantise
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.geometry import Array as Float64
from lora_ref.rounding import Bounded

quant_forward_oracle = invariant("quant-forward-oracle", family="quantised", after=("forward-oracle", "grad-oracle"))
quant_merge_honest = invariant(
    "quant-merge-honest", family="quantised", after=("quant-forward-oracle", "merge-delta-oracle")
)


@quant_forward_oracle.on(
    Facet.LAYER, needs={Feature.QUANTISED}, draws=Draw(kinds=("linear",), rows=True, small=True, quantised=True)
)
def _(subject: Subject, case: Case) -> None:
    """Over a quantised base y = x W_qᵀ + bias + s (x Aᵀ) Bᵀ, with the gradients of that; the base stays as it is.

    W_q (out, in) is what the base's own forward computes with: its stored integers times their scales, in the dtype of
    the layer. y has that dtype. Nothing of the base is trainable, receives a gradient or changes in three steps.
    Source: Dettmers et al., 2023, arXiv:2305.14314, equation 5.
    """
    handle, x, dy = subject.attach(case), case.arrays.x, case.arrays.dy
    before = _base(handle)
    must(before["weight"].value.dtype.kind in "iu", "dtype of the stored weight", "whole numbers",
         before["weight"].value.dtype)  # fmt: skip
    grads = handle.vjp(x, dy)
    must(grads.y.dtype == x.dtype, "dtype of y", x.dtype, grads.y.dtype)
    subject.judge_output(case, grads.y, case.oracle(subject.manifest).forward(x))
    judge_gradients(subject, case, grads)
    must(not grads.base, "gradients in base tensors", "none", ", ".join(grads.base))
    for name, tensor in before.items():
        must(not tensor.trainable, f"{name} asks for gradients", "no", "yes")
    if subject.has(Feature.TRAIN_STEP):
        for _ in range(3):
            handle.step(x, dy, lr=0.01, weight_decay=0.1)
        _must_be_unchanged(subject, before, _base(handle), "after three steps")


@dataclass(frozen=True)
class QuantisedCase(Case):
    """``small``: a delta that is far below half a step of the quantisation everywhere."""

    small: bool = False


class DrawDelta(Draw):
    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return st.builds(_with, super().__call__(subject), st.booleans())

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return QuantisedCase.from_fields(given)


def _with(case: Case, small: bool) -> Case:  # noqa: FBT001 (drawn)
    values = {name: getattr(case, name) for name in Case.__dataclass_fields__}
    return QuantisedCase(**{**values, "base_zero": False}, small=small)


@quant_merge_honest.on(
    Facet.LAYER,
    needs={Feature.QUANTISED, Feature.MERGE},
    dtypes=("float32",),
    draws=DrawDelta(kinds=("linear",), rows=True, small=True, quantised=True),
)
def _(subject: Subject, case: Case) -> None:
    """Merging into a quantised base keeps the delta or is refused; it never gives the base again and says nothing.

    Refused, it leaves output and base bit for bit as they were. Otherwise W' is W_q + s B A, rounded once; or, stored
    in few bits again, off by at most half a step of its own quantisation, and nearer to W_q + s B A than to W_q. That
    last fails where the delta is below half a step and is rounded away: then only a refusal, or a wider weight, is
    honest.
    """
    assert isinstance(case, QuantisedCase)
    handle, x = subject.attach(case), case.arrays.x
    b = _small(case) if case.small else case.arrays.b
    handle.write(case.arrays.a, b)
    before, y = _base(handle), handle.forward(x)
    if refuses(handle.merge):
        subject.judge.same("y after a refused merge", handle.forward(x), y)
        _must_be_unchanged(subject, before, _base(handle), "after a refused merge")
        return
    oracle = case.oracle_of(case.arrays.a, b, subject.manifest)
    expected, merged = oracle.merged_weight(narrow=True), handle.effective_weight()
    if not _in_few_bits(merged, case):
        subject.judge("W'", merged, expected, exact=False, delta=oracle.delta_weight().value, spec=case.spec)
        subject.judge("y while merged", handle.forward(x), oracle.merged_forward(x, narrow=True), exact=False)
        return
    w = _float64(merged)
    half = np.repeat(_steps(w, case.bits) / 2, BLOCK, axis=1)[:, : case.in_features]
    subject.judge("W' in few bits", merged, Bounded(expected.value, expected.bound + half), exact=False)
    lost, kept = np.linalg.norm(w - expected.value), np.linalg.norm(w - _float64(case.base_weight))
    must(lost < kept, "‖W' - (W_q + s B A)‖", f"less than ‖W' - W_q‖ = {kept:.3g}", f"{lost:.3g}",
         "the delta is rounded away" if not kept else "")  # fmt: skip


def _small(case: Case) -> Array:
    """B times the power of two that brings every element of the delta to an eighth of its block's step, or below."""
    delta = case.spec.scaling * _float64(case.arrays.b) @ _float64(case.arrays.a)
    steps = _steps(_float64(case.base_weight), case.bits)
    least, most = steps[steps > 0].min(initial=np.inf), np.abs(delta).max(initial=0)
    if not (most and np.isfinite(least)):
        return case.arrays.b
    power = 2.0 ** min(0.0, np.floor(np.log2(least / (8 * most))))
    small: Array = (_float64(case.arrays.b) * power).astype(case.arrays.b.dtype)
    return small


def _steps(w: Float64, bits: int) -> Float64:
    """The step of each block (out, n / BLOCK)."""
    return quantise(w, bits).scales.astype(np.float64)


def _in_few_bits(w: Array, case: Case) -> bool:
    """Whether quantising w changes nothing but for the rounding of its scales."""
    again = dequantise(quantise(w, case.bits)).astype(np.float64)
    slack = 4 * largest(case.bits) * 2.0**-24 * np.repeat(_steps(_float64(w), case.bits), BLOCK, axis=1)
    return bool((np.abs(_float64(w) - again) <= slack[:, : case.in_features]).all())


def _base(handle: Handle) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in handle.tensors().items() if not name.startswith(("a:", "b:"))}


def _must_be_unchanged(subject: Subject, before: dict[str, Tensor], after: dict[str, Tensor], when: str) -> None:
    must(after.keys() == before.keys(), f"base tensors {when}", ", ".join(before), ", ".join(after))
    for name, tensor in before.items():
        must(after[name].value.dtype == tensor.value.dtype, f"dtype of {name} {when}", tensor.value.dtype,
             after[name].value.dtype)  # fmt: skip
        subject.judge.same(f"base {name} {when}", after[name].value, tensor.value)


def _float64(array: Array) -> Float64:
    numbers: Float64 = array.astype(np.float64)
    return numbers
