"""Dtype: what goes in comes out, and nothing is lost on the way but what rounding must lose."""

from __future__ import annotations

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must

dtype_preserved = invariant("dtype-preserved", family="dtype", after=("forward-oracle",))
precision_bound = invariant("precision-bound", family="dtype", after=("forward-oracle",))


@dtype_preserved.on(Facet.OPERATOR, Facet.LAYER, draws=Draw(kinds=("linear", "transposed", "embedding")))
def _(subject: Subject, case: Case) -> None:
    """The output has the base layer's dtype, each gradient that of its tensor, and a merged weight that of W.

    Also with float32 adapters over a base of lower precision.
    """
    grads = subject.vjp(case)
    _must_be("y", grads.y, case.dtype)
    if case.geometry.differentiable:
        _must_be("dx", grads.dx, case.dtype)
    _must_be("dA", grads.da, case.adapter)
    _must_be("dB", grads.db, case.adapter)
    if subject.facet is Facet.LAYER and subject.has(Feature.MERGE):
        handle = subject.attach(case)
        handle.merge()
        _must_be("W'", handle.effective_weight(), case.dtype)
        _must_be("y while merged", handle.forward(case.arrays.x), case.dtype)


def _must_be(what: str, array: Array | None, dtype: str) -> None:
    must(array is not None, what, f"an array of {dtype}", "nothing")
    assert array is not None
    must(array.dtype.name == dtype, f"dtype of {what}", dtype, array.dtype.name)


@precision_bound.on(
    Facet.LAYER, needs={Feature.MERGE}, draws=Draw(kinds=("linear", "transposed", "embedding"), tiers=("bounded",))
)
def _(subject: Subject, case: Case) -> None:
    """A merge forms the delta in float32 or better and rounds once, to W's dtype: |error| <= u·|W'| and little more.

    A delta that is itself rounded to bfloat16 first costs another u·|s·B·A|.
    """
    handle = subject.attach(case)
    handle.merge()
    subject.judge("W'", handle.effective_weight(), case.oracle(subject.manifest).merged_weight(), exact=False)


@precision_bound.on(Facet.OPERATOR, draws=Draw(tiers=("bounded",), rows=True))
def _(subject: Subject, case: Case) -> None:
    y = subject.vjp(case).y
    subject.judge_output(case, y, case.oracle(subject.manifest).forward(case.arrays.x))
