"""Determinism: the same question has one answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conformance.cases import Case
from conformance.contract import Array, Facet
from conformance.elsewhere import answer, answer_elsewhere
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must

run_deterministic = invariant("run-deterministic", family="determinism", after=("forward-oracle", "grad-oracle"))

_REPEATS = 10


@run_deterministic.on(
    Facet.OPERATOR,
    Facet.LAYER,
    cost=8,
    slow=True,
    dtypes=("float32", "bfloat16"),
    draws=Draw(kinds=("linear", "transposed", "embedding"), rows=True, tiers=("bounded",), long=True),
)
def _(subject: Subject, case: Case) -> None:
    """The same input gives the same bits: ten times in one process, after other inputs, and in another process.

    So no sum depends on the order in which threads, hash tables or addresses happen to be. A row of a batch does not
    depend on the values of the other rows: with the same shapes it keeps its bits whatever they are.
    """
    first = answer(subject, case)
    for nth in range(1, _REPEATS):
        if nth == _REPEATS - 1:
            answer(subject, replace(case, seed=case.seed ^ 2))
        _must_equal(subject, answer(subject, case), first, f"of call {nth + 1}")
    elsewhere = answer_elsewhere(subject, case)
    if elsewhere is not None:
        _must_equal(subject, elsewhere, first, "of another process")
    rows = case.arrays.x.reshape(-1, case.arrays.x.shape[-1]) if case.geometry.differentiable else case.arrays.x
    if not case.lead or case.lead[0] < 2 or rows.size == 0:
        return
    kept = case.seed % case.lead[0]
    other = _others_changed(case, kept)
    y = subject.vjp_of(case.spec, case.weights(), other, case.arrays.dy).y
    subject.judge.same(f"y of row {kept} beside other rows", y[kept], first["y"][kept])


def _others_changed(case: Case, kept: int) -> Array:
    """x with other values, and a thousand times as large, in all rows but one."""
    x = case.arrays.x.copy()
    fresh = replace(case, seed=case.seed ^ 1).arrays.x
    wide = np.asarray(fresh * np.float32(1024)).astype(x.dtype) if case.geometry.differentiable else fresh
    mask = np.arange(case.lead[0]) != kept
    x[mask] = wide[mask]
    x.flags.writeable = False
    return x


def _must_equal(subject: Subject, now: dict[str, Array], before: dict[str, Array], which: str) -> None:
    for name, value in before.items():
        if value is None:
            must(now[name] is None, f"{name} {which}", "nothing", "an array")
        else:
            subject.judge.same(f"{name} {which}", now[name], value)
