"""Variants of LoRA: DoRA's magnitudes, and adapters that start from the weight itself."""

from __future__ import annotations

import numpy as np

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Handle
from conformance.dropout import replayed_mask
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.dora import DoraOracle
from lora_ref.rounding import UNIT_ROUNDOFF

dora_consistent = invariant(
    "dora-consistent", family="variants", after=("forward-oracle", "grad-oracle", "merge-delta-oracle")
)

_LR = 0.5


@dora_consistent.on(
    Facet.LAYER,
    needs={Feature.DORA},
    cost=2,
    draws=Draw(kinds=("linear", "transposed"), rows=True, small=True, dora=True, dropout=(0.0, 0.5)),
)
def _(subject: Subject, case: Case) -> None:
    """DoRA computes y = m/n (x Wᵀ + s (x Aᵀ) Bᵀ) + bias with n = ‖W + s B A‖, one norm and one magnitude per output.

    x (..., in), W (out, in) or (in, out), A (r, in), B (out, r), m and n (out,). n is taken over the inputs, whichever
    way W is stored, and is a constant for autograd; the bias is not scaled. A fresh adapter has m = n and is the base.
    m is trained, and all gradients are the closed form's. Merged, the weight is m/n (W + s B A), and W after unmerging.
    An output whose row of W + s B A is zero gives its bias, and finite gradients.
    Source: Liu et al., 2024, arXiv:2402.09353, equation 5 and section 4.3; ``lora_ref.dora`` has the closed form.
    """
    _judge_fresh(subject, case)
    handle = subject.attach(case)
    mask = None
    if case.dropout and subject.has(Feature.DROPOUT):
        mask = replayed_mask(subject, case, seed=case.seed)
    oracle, x, dy = _oracle(subject, case), case.arrays.x, case.arrays.dy
    grads = handle.vjp(x, dy, train=mask is not None, seed=case.seed)
    delta = oracle.delta(x, mask).value
    subject.judge("y", grads.y, oracle.forward(x, mask), exact=False, delta=delta, spec=case.spec)
    expected = oracle.gradients(x, dy, mask)
    assert expected.x is not None
    assert expected.m is not None
    subject.judge("dm", grads.dm, expected.m, exact=False)
    subject.judge("dA", grads.da, expected.a, exact=False, spec=case.spec)
    subject.judge("dB", grads.db, expected.b, exact=False, spec=case.spec)
    subject.judge("dx", grads.dx, expected.x, exact=False)
    if subject.has(Feature.MERGE):
        _judge_merge(subject, case, handle)
    if subject.has(Feature.TRAIN_STEP):
        _judge_step(subject, case)


def _oracle(subject: Subject, case: Case) -> DoraOracle:
    oracle = case.oracle(subject.manifest)
    assert isinstance(oracle, DoraOracle)
    return oracle


def _judge_fresh(subject: Subject, case: Case) -> None:
    handle = subject.attach(case, factors=False)
    zero = np.zeros_like(case.arrays.b)
    oracle = case.oracle_of(case.arrays.a, zero, subject.manifest)
    assert isinstance(oracle, DoraOracle)
    norm = oracle.magnitude.T
    state = handle.tensors()
    must("m:default" in state, "magnitude of a fresh adapter", "a tensor m:default", ", ".join(state))
    m = state["m:default"].value
    subject.judge("m of a fresh adapter", m[:, None], norm, exact=False)
    subject.judge("y of a fresh adapter", handle.forward(case.arrays.x), oracle.forward(case.arrays.x), exact=False)


def _judge_merge(subject: Subject, case: Case, handle: Handle) -> None:
    oracle, x = _oracle(subject, case), case.arrays.x
    handle.forward(x)  # a merge belongs to eval mode
    handle.merge()
    subject.judge("W'", handle.effective_weight(), oracle.merged_weight(narrow=True), exact=False)
    subject.judge("y while merged", handle.forward(x), oracle.merged_forward(x, narrow=True), exact=False)
    if subject.has(Feature.UNMERGE):
        handle.unmerge()
        subject.judge("W after an unmerge", handle.effective_weight(), oracle.restored_weight(), exact=False)


def _judge_step(subject: Subject, case: Case) -> None:
    handle, x, dy = subject.attach(case), case.arrays.x, case.arrays.dy
    before = handle.tensors()["m:default"]
    must(before.trainable, "m asks for gradients", "yes", "no")
    gradient = _oracle(subject, case).gradients(x, dy).m
    assert gradient is not None
    handle.step(x, dy, lr=_LR, weight_decay=0.0, train=False)
    after = handle.tensors()["m:default"].value
    must(np.isfinite(_numbers(after)).all(), "m after a step", "finite values", "NaN or inf")
    move = _LR * (np.abs(gradient.value) - gradient.bound)
    if (move > 4 * UNIT_ROUNDOFF[case.adapter] * np.abs(_numbers(before.value))).any():
        moved = (after != before.value).any()
        must(moved, "m after a step with a non-zero gradient", "other values", "the same values")


def _numbers(array: Array) -> Array:
    return array.astype(np.float64)
