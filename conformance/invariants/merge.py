"""Merge: W' = W + s·B·A, and back."""

from __future__ import annotations

import numpy as np
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case, Kind
from conformance.contract import Facet, Feature
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from lora_ref.geometry import Array
from lora_ref.oracle import Oracle
from lora_ref.rounding import Bounded

merge_delta_oracle = invariant("merge-delta-oracle", family="merge", after=("forward-oracle",))
merge_equivalence = invariant("merge-equivalence", family="merge", after=("merge-delta-oracle",))
unmerge_restores_base = invariant("unmerge-restores-base", family="merge", after=("merge-delta-oracle",))
merge_idempotent = invariant("merge-idempotent", family="merge", after=("merge-delta-oracle",))
merge_atomic = invariant("merge-atomic", family="merge", after=("unmerge-restores-base",))

_CYCLES = 128
_PLAIN: tuple[Kind, ...] = (
    "linear",
    "transposed",
    "embedding",
)  # convolutions are merged where the delta itself is judged


class DrawMergeable(Draw):
    """Every kind of weight and delta; but for grouped factors in blocks, which have no merged form."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return super().__call__(subject).filter(lambda case: case.factors == "flattened")


@merge_delta_oracle.on(
    Facet.LAYER,
    needs={Feature.MERGE},
    cost=1 / 2,
    draws=DrawMergeable(
        ("linear", "transposed", "embedding", "conv", "fused", "conv", "fused", "experts"), geometry=True
    ),
)
def _(subject: Subject, case: Case) -> None:
    """After a merge the weight is W + s·B·A, in W's own layout; the bias is what it was.

    Judged against the closed form, not by a round trip, in which errors of merge and unmerge cancel.
    """
    handle = subject.attach(case)
    handle.merge()
    oracle = case.oracle(subject.manifest)
    delta = oracle.delta_weight().value
    exactly = case.tier == "exact"
    expected = oracle.merged_weight(narrow=True)
    subject.judge("W'", handle.effective_weight(), expected, exact=exactly, delta=delta, spec=case.spec)
    if case.arrays.bias is not None:
        subject.judge.same("bias while merged", handle.tensors()["bias"].value, case.arrays.bias)


@merge_equivalence.on(Facet.LAYER, needs={Feature.MERGE}, cost=1 / 2, draws=Draw(rows=True))
def _(subject: Subject, case: Case) -> None:
    """The merged layer computes what the unmerged one does, up to the rounding of W' to its dtype."""
    handle = subject.attach(case)
    handle.merge()
    expected = case.oracle(subject.manifest).merged_forward(case.arrays.x, narrow=True)
    subject.judge_output(case, handle.forward(case.arrays.x), expected, quantity="y while merged")


@unmerge_restores_base.on(
    Facet.LAYER, needs={Feature.MERGE, Feature.UNMERGE}, cost=3, draws=Draw(rows=True, small=True, headroom=1)
)
def _(subject: Subject, case: Case) -> None:
    """Merge then unmerge gives the base weight back, and the error does not grow with the number of cycles.

    One cycle may round twice, by subtracting what it added. After 128 cycles, each with other values of A and B as in
    training, the same bound holds: a base that takes a random walk is not frozen. Each merge adds what A and B are by
    then.
    """
    handle = subject.attach(case)
    exactly = case.tier == "exact"
    handle.merge()
    handle.unmerge()
    subject.judge("W after one cycle", handle.effective_weight(), one_cycle(subject, case), exact=exactly)
    if exactly:
        expected = case.oracle(subject.manifest).forward(case.arrays.x)
        subject.judge_output(case, handle.forward(case.arrays.x), expected, quantity="y after one cycle")
    values = [case.sibling(nth).arrays for nth in range(8)]
    bound = np.max([one_cycle(subject, case.sibling(nth), of=case).bound for nth in range(8)], axis=0)
    for cycle in range(_CYCLES):
        handle.write(values[cycle % 8].a, values[cycle % 8].b)
        handle.merge()
        if exactly and cycle == 1:
            merged = case.oracle_of(values[1].a, values[1].b, subject.manifest).merged_weight()
            subject.judge("W' of a later merge", handle.effective_weight(), merged, exact=True)
        handle.unmerge()
    drift = Bounded(case.arrays.w.astype(np.float64), bound)
    subject.judge(f"W after {_CYCLES} cycles", handle.effective_weight(), drift, exact=exactly)


def one_cycle(subject: Subject, case: Case, *, of: Case | None = None) -> Bounded:
    """W (of the case ``of``) after a merge and an unmerge of this case's adapter."""
    w = (of or case).arrays.w
    return restored(case.oracle(subject.manifest), w.astype(np.float64))


def restored(oracle: Oracle, w: Array | None = None) -> Bounded:
    """W, with the error of (W + D) - D: each sum rounds once to W's dtype, and D may be rounded on the way."""
    delta = oracle.delta_weight(narrow=True)
    w = oracle.geometry.weight_array(oracle.w.value) if w is None else w
    merged = oracle.base.round(Bounded(np.abs(w) + delta.magnitude, delta.bound))
    return Bounded(w, oracle.base.round(Bounded(np.abs(w), merged.bound)).bound)


@merge_idempotent.on(Facet.LAYER, needs={Feature.MERGE}, draws=Draw(kinds=_PLAIN, rows=True))
def _(subject: Subject, case: Case) -> None:
    """A second merge changes nothing: the delta is in the weight once. Refusing it is as good."""
    handle = subject.attach(case)
    handle.merge()
    once = handle.effective_weight()
    refused = refuses(handle.merge)
    subject.judge.same(f"W' after a second merge{' was refused' if refused else ''}", handle.effective_weight(), once)
    if subject.has(Feature.UNMERGE):
        handle.unmerge()
        subject.judge(
            "W after one unmerge", handle.effective_weight(), one_cycle(subject, case), exact=case.tier == "exact"
        )


@merge_atomic.on(Facet.LAYER, needs={Feature.MERGE, Feature.UNMERGE}, draws=Draw(kinds=_PLAIN, rows=True, rank=2))
def _(subject: Subject, case: Case) -> None:
    """A merge that cannot succeed leaves everything as it was: with a NaN or infinite delta it is refused, or undone.

    After the refusal, or after an unmerge where it was not refused, the weight is the base's and nothing is merged.
    """
    handle = subject.attach(case)
    for poison in (np.nan, np.inf):
        b = case.arrays.b.copy()
        b.reshape(-1)[0] = poison
        handle.write(case.arrays.a, b)
        refused = refuses(handle.merge)
        if not refused:
            handle.unmerge()
        handle.write(case.arrays.a, case.arrays.b)
        what = f"W after a {'refused merge' if refused else 'merge and unmerge'} of a delta with {poison}"
        subject.judge(what, handle.effective_weight(), one_cycle(subject, case), exact=case.tier == "exact")
        if case.tier == "exact":
            expected = case.oracle(subject.manifest).forward(case.arrays.x)
            subject.judge_output(case, handle.forward(case.arrays.x), expected, quantity=f"y after {what[8:]}")


def refuses(request: object, *arguments: object) -> bool:
    """Whether the request is refused, by any exception."""
    try:
        request(*arguments)  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - any exception is a refusal
        return True
    return False
