"""Forward: what a LoRA layer computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conformance.cases import Case
from conformance.contract import Facet, Feature
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject

forward_oracle = invariant("forward-oracle", family="forward")
base_path_untouched = invariant("base-path-untouched", family="forward", after=("forward-oracle",))


@forward_oracle.on(Facet.OPERATOR, Facet.LAYER, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    """With B != 0, y = x Wᵀ + bias + s (x Aᵀ) Bᵀ.

    x (..., in), W (out, in), A (r, in), B (out, r), y (..., out). Source: Hu et al., 2021, equation 3.
    """
    grads = subject.vjp(case)
    subject.judge_output(case, grads.y, case.oracle(subject.manifest).forward(case.arrays.x))


@base_path_untouched.on(Facet.OPERATOR, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    """With B = 0 the layer is the base layer: y = x Wᵀ + bias and dx = dy W, whatever A, s and dropout are.

    Scaling, dropout and every other multiplier act on the delta alone.
    """
    weights = case.weights()
    assert weights.b is not None
    operator = subject.backend.operator
    assert operator is not None
    zero = np.zeros_like(weights.b)
    grads = operator.vjp(case.spec, replace(weights, b=zero), case.arrays.x, case.arrays.dy)
    oracle = case.oracle_of(case.arrays.a, zero, subject.manifest)
    exact = case.tier == "exact"
    subject.judge("y", grads.y, oracle.forward(case.arrays.x), exact=exact)
    expected = oracle.gradients(case.arrays.x, case.arrays.dy).x
    assert expected is not None
    subject.judge("dx", grads.dx, expected, exact=exact)


@base_path_untouched.on(Facet.LAYER, draws=Draw(kinds=("linear",), rows=True, dropout=(0.0, 0.5)))
def _(subject: Subject, case: Case) -> None:
    if case.dropout and not subject.has(Feature.DROPOUT):
        case = replace(case, dropout=0.0)
    handle = subject.attach(case)
    zero = np.zeros_like(case.arrays.b)
    handle.write(case.arrays.a, zero)
    grads = handle.vjp(case.arrays.x, case.arrays.dy, train=True, seed=case.seed)
    oracle = case.oracle_of(case.arrays.a, zero, subject.manifest)
    exact = case.tier == "exact"
    subject.judge("y in training mode", grads.y, oracle.forward(case.arrays.x), exact=exact)
    expected = oracle.gradients(case.arrays.x, case.arrays.dy).x
    assert expected is not None
    subject.judge("dx in training mode", grads.dx, expected, exact=exact)
