"""Gradients: what training sees."""

from __future__ import annotations

import numpy as np

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Grads
from conformance.dropout import replayed_mask
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must

grad_oracle = invariant("grad-oracle", family="gradients", after=("forward-oracle",))
grad_reaches_adapter = invariant("grad-reaches-adapter", family="gradients", after=("grad-oracle",))


def judge_gradients(subject: Subject, case: Case, grads: Grads, mask: Array | None = None) -> None:
    """dA, dB and dx against the closed form; a gradient in a base tensor is a violation of its own invariant."""
    expected = case.oracle(subject.manifest).gradients(case.arrays.x, case.arrays.dy, mask)
    exact = case.tier == "exact"
    subject.judge("dA", grads.da, expected.a, exact=exact, spec=case.spec)
    subject.judge("dB", grads.db, expected.b, exact=exact, spec=case.spec)
    if expected.x is not None:
        base = case.oracle_of(case.arrays.a, np.zeros_like(case.arrays.b), subject.manifest)
        frozen = base.gradients(case.arrays.x, case.arrays.dy).x
        assert frozen is not None
        delta = expected.x.value - frozen.value
        subject.judge("dx", grads.dx, expected.x, exact=exact, delta=delta, spec=case.spec)


@grad_oracle.on(Facet.OPERATOR, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    """dA = s (dy B)ᵀ x, dB = s dyᵀ (x Aᵀ) and dx = dy W + s (dy B) A, with B != 0.

    In training mode x is, on the adapter's path, what dropout left of it, and so is the gradient that returns there.
    """
    judge_gradients(subject, case, subject.vjp(case))


@grad_oracle.on(Facet.LAYER, draws=Draw(kinds=("linear",), rows=True, small=True, dropout=(0.0, 0.5)))
def _(subject: Subject, case: Case) -> None:
    if not case.dropout or not subject.has(Feature.DROPOUT):
        judge_gradients(subject, case, subject.vjp(case))
        return
    mask = replayed_mask(subject, case, seed=case.seed)
    handle = subject.attach(case)
    judge_gradients(subject, case, handle.vjp(case.arrays.x, case.arrays.dy, train=True, seed=case.seed), mask)


@grad_reaches_adapter.on(Facet.LAYER, needs={Feature.TRAIN_STEP}, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    """After one optimiser step on a loss that depends on them, A and B have finite values and have moved."""
    handle = subject.attach(case)
    before = handle.tensors()
    expected = case.oracle(subject.manifest).gradients(case.arrays.x, case.arrays.dy)
    handle.step(case.arrays.x, case.arrays.dy, lr=0.5, weight_decay=0.0)
    after = handle.tensors()
    for name, gradient in (("a:default", expected.a), ("b:default", expected.b)):
        must(
            np.isfinite(after[name].value.astype(np.float64)).all(),
            f"{name} after a step",
            "finite values",
            "NaN or inf",
        )
        if (np.abs(gradient.value) > gradient.bound).any():
            moved = (after[name].value != before[name].value).any()
            must(moved, f"{name} after a step with a non-zero gradient", "other values", "the same values")
