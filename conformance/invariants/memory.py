"""Memory: nothing is read that was not given, nothing is written that is not one's own, nothing is kept in vain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Grads, Saving
from conformance.guards import Guards, guarded
from conformance.invariant import invariant
from conformance.invariants.gradients import judge_gradients
from conformance.layout import Poisoned
from conformance.routed import DrawRouted, Routed, as_index
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must

saved_tensor_budget = invariant("saved-tensor-budget", family="memory", after=("grad-oracle",))
memory_safe = invariant("memory-safe", family="memory", after=("forward-oracle", "grad-oracle"))


@saved_tensor_budget.on(
    Facet.LAYER,
    needs={Feature.SAVED_BYTES},
    draws=Draw(kinds=("linear", "transposed", "embedding", "fused"), rows=True),
)
def _(subject: Subject, case: Case) -> None:
    """Between forward and backward no more is kept than the formula needs: x and h = x Aᵀ, each once.

    x (M, in) and h (M, r) in the adapter's dtype give dA, dB and dx; W, A and B are there anyway. So a frozen W costs
    no copy of x, and B·A (out, in) is never kept. Token ids take the place of x in an embedding. Dropout may also keep
    its mask (M, in), and a fused projection a copy of B that is spread over the stacked rows (out, n·r).
    """
    for dropout in (0.0, 0.5) if subject.has(Feature.DROPOUT) and case.geometry.differentiable else (0.0,):
        dropped = replace(case, dropout=dropout, tier="bounded")
        got = subject.attach(dropped).saved_bytes(dropped.arrays.x, train=True)
        _must_fit(dropped, got)


@saved_tensor_budget.on(Facet.OPERATOR, needs={Feature.SAVED_BYTES}, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    operator = cast("Saving", subject.backend.operator)
    _must_fit(case, operator.saved_bytes(case.spec, case.weights(), case.arrays.x))


def _must_fit(case: Case, got: int) -> None:
    a, x = case.arrays.a, case.arrays.x
    rows = case.geometry.rows(x.astype(np.float64)).shape[0]
    ids = not case.geometry.differentiable
    budget = {"ids" if ids else "x": x.size * (x.itemsize if ids else a.itemsize)}
    budget["h"] = rows * a.shape[0] * a.itemsize
    if case.dropout:
        budget["mask"] = x.size * a.itemsize
    if case.kind == "fused":
        budget["B"] = case.out_features * a.shape[0] * a.itemsize
    words = " + ".join(f"{size} for {name}" for name, size in budget.items())
    total = sum(budget.values())
    must(got <= total, "bytes kept for backward", f"at most {total} ({words})", got, _guess(case, got - total))


def _guess(case: Case, excess: int) -> str:
    at = case.arrays
    if excess == at.x.size * at.x.itemsize:
        return "x is kept twice"
    return "something of W's shape is kept as well" if excess == at.w.size * at.a.itemsize else ""


class DrawGuarded(Draw):
    """Convolutions in the exact tier only: how they accumulate the gradient of x in narrow dtypes is torch's affair."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return super().__call__(subject).filter(lambda case: case.kind != "conv" or case.tier == "exact")


@memory_safe.on(Facet.LAYER, cost=2, draws=DrawGuarded(rows=True, small=True, layouts=True, headroom=1))
def _(subject: Subject, case: Case) -> None:
    """Nothing is read beside or before it was written, no input is written to, and no output is anyone else's memory.

    x, dy, W, bias, A and B lie inside larger buffers of NaN, with gaps between rows where they may have strides, and
    memory that is not initialised holds NaN too: the results are finite and right. All buffers keep their bits through
    forward and backward, and beside the tensors through a merge. Outputs that their owner overwrites change nothing.
    """
    if case.kind != "linear":  # other base layers refuse some strides themselves
        case = replace(case, x_layout="contiguous", dy_layout="contiguous")
    x, dy = case.arrays.x, case.arrays.dy
    oracle, exact = case.oracle(subject.manifest), case.tier == "exact"
    with guarded() as guards:
        handle = subject.attach(case)
        _judge_all(subject, case, handle.vjp(x, dy))
        guards.must_hold("after forward and backward")
        subject.judge_output(case, handle.forward(x), oracle.forward(x))
        guards.must_hold("after a forward without gradients")
        handle.vjp(_other(case), dy)
        handle.forward(_other(case))
        guards.must_keep_outputs("after further calls")
        guards.must_hold("after outputs were overwritten")
        subject.judge_output(case, handle.forward(x), oracle.forward(x), quantity="y after outputs were overwritten")
        if subject.has(Feature.MERGE) and case.kind != "conv":
            handle.merge()
            expected = oracle.merged_forward(x, narrow=True)
            subject.judge_output(case, handle.forward(x), expected, quantity="y while merged")
            guards.must_hold("after a merge", inside=False)
            if subject.has(Feature.UNMERGE):
                handle.unmerge()
                guards.must_hold("after unmerging", inside=exact)


@memory_safe.on(Facet.OPERATOR, draws=Draw(kinds=("linear",), rows=True, small=True, layouts=True))
def _(subject: Subject, case: Case) -> None:
    poisoned = Poisoned()
    given = case.weights()
    w, bias, a, b = (poisoned.place(v) for v in (given.w, given.bias, given.a, given.b))
    weights = replace(given, w=cast("Array", w), bias=bias, a=a, b=b)
    x, dy = (cast("Array", poisoned.place(v)) for v in (case.arrays.x, case.arrays.dy))
    with guarded() as guards:
        _judge_all(subject, case, subject.vjp_of(case.spec, weights, x, dy))
        subject.vjp_of(case.spec, weights, _other(case), dy)
        guards.must_keep_outputs("after further calls")
        _judge_all(subject, case, subject.vjp_of(case.spec, weights, x, dy))
    _must_hold(guards, poisoned)


@memory_safe.on(Facet.BATCH, draws=DrawRouted(kinds=("linear",), small=True, mixed=False, headroom=1))
def _(subject: Subject, case: Routed) -> None:
    batch, poisoned = subject.backend.batch, Poisoned()
    assert batch is not None
    given = case.weights(factors=False)
    w, bias, x = (poisoned.place(v) for v in (given.w, given.bias, case.arrays.x))
    weights = replace(given, w=cast("Array", w), bias=bias)
    adapters: Any = [(poisoned.place(a), poisoned.place(b)) for _, a, b in case.adapters]
    with guarded() as guards:
        expected = case.expected(subject.manifest, as_index(case.index), case.arrays.x)
        for what in ("y", "y after outputs were overwritten"):
            y = batch.forward(case.spec, weights, adapters, cast("Array", x), case.index)
            subject.judge(what, y, expected, exact=case.tier == "exact")
            guards.must_keep_outputs("at once")
    _must_hold(guards, poisoned)


def _must_hold(guards: Guards, poisoned: Poisoned) -> None:
    guards.must_hold("after all calls")
    must(poisoned.unchanged(), "the arrays that were handed over, and beside them", "what they were", "other bits")


def _other(case: Case) -> Array:
    """Another x of the same shape."""
    x = case.arrays.x
    return -x if case.geometry.differentiable else (x + 1) % case.in_features


def _judge_all(subject: Subject, case: Case, grads: Grads) -> None:
    subject.judge_output(case, grads.y, case.oracle(subject.manifest).forward(case.arrays.x))
    judge_gradients(subject, case, grads)
