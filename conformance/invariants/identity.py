"""Identity: a fresh adapter changes nothing, and can learn."""

from __future__ import annotations

import numpy as np

from conformance.cases import Case
from conformance.contract import Facet, Feature
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must

identity_at_init = invariant("identity-at-init", family="identity")
init_asymmetry = invariant("init-asymmetry", family="identity", after=("identity-at-init",))


@identity_at_init.on(Facet.LAYER, needs={Feature.INIT}, draws=Draw(rows=True))
def _(subject: Subject, case: Case) -> None:
    """A fresh adapter, as the implementation itself initialises it, leaves the output bit for bit unchanged.

    One factor is zero, so the delta is zero and adding it rounds nothing. Source: Hu et al., 2021, section 4.1
    ("so ΔW = BA is zero at the beginning of training").
    """
    handle = subject.attach(case, factors=False)
    oracle = case.oracle_of(np.zeros_like(case.arrays.a), np.zeros_like(case.arrays.b), subject.manifest)
    expected = oracle.base_forward(case.arrays.x)
    for train in (False, True):
        y = handle.forward(case.arrays.x, train=train, seed=case.seed)
        subject.judge(f"y {'in training' if train else 'in eval'} mode", y, expected, exact=case.tier == "exact")


@init_asymmetry.on(Facet.LAYER, needs={Feature.INIT}, draws=Draw(rows=True, tiers=("bounded",)))
def _(subject: Subject, case: Case) -> None:
    """At initialisation exactly one factor is zero, and that factor receives a gradient.

    With both zero nothing could ever be learnt: the gradient of each is a multiple of the other.
    """
    handle = subject.attach(case, factors=False)
    state = handle.tensors()
    a, b = state["a:default"].value, state["b:default"].value
    zero = subject.manifest.zero_factor.get(case.kind, "b")
    for name, factor in (("a", a), ("b", b)):
        numbers = factor.astype(np.float64)
        must(np.isfinite(numbers).all(), f"{name.upper()} at initialisation", "finite values", numbers)
        if name == zero:
            must(
                not numbers.any(),
                f"{name.upper()} at initialisation",
                "all zero",
                f"{np.abs(numbers).max():.3g} at most",
            )
        else:
            must(numbers.any(), f"{name.upper()} at initialisation", "non-zero values", "all zero")
    grads = handle.vjp(case.arrays.x, case.arrays.dy)
    oracle = case.oracle_of(a.reshape(case.arrays.a.shape), b.reshape(case.arrays.b.shape), subject.manifest)
    expected = oracle.gradients(case.arrays.x, case.arrays.dy)
    wanted, got = (expected.a, grads.da) if zero == "a" else (expected.b, grads.db)
    if (np.abs(wanted.value) > wanted.bound).any():
        missing = got is None or not got.astype(np.float64).any()
        must(not missing, f"gradient of {zero.upper()} at step 0", "non-zero", "nothing" if got is None else "all zero")
