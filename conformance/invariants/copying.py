"""Copies: the same thing again, and from then on another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Handle, ModelHandle
from conformance.invariant import invariant
from conformance.model_cases import DrawModel, ModelCase
from conformance.several import DrawSeveral, Several
from conformance.sites import outputs
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must

copy_independent = invariant("copy-independent", family="persist", after=("forward-oracle",))

_STEPS = ("write", "step", "disable", "rescale", "switch")  # in any order, between an unmerge and a merge
_NEEDS = {
    "step": Feature.TRAIN_STEP,
    "merge": Feature.MERGE,
    "unmerge": Feature.UNMERGE,
    "disable": Feature.DISABLE,
    "rescale": Feature.RUNTIME_SCALE,
    "switch": Feature.MULTI_ADAPTER,
}


@dataclass(frozen=True)
class Copied(Several):
    """A case that is copied once it is as far from a fresh layer as the backend can be brought."""

    pickled: bool = False
    merged: bool = False


@dataclass(frozen=True)
class DrawCopied(DrawSeveral):
    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        merged = st.booleans() if subject.has(Feature.MERGE) else st.just(value=False)
        return st.builds(_copied, super().__call__(subject), st.booleans(), merged)

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return Copied.from_fields(given)


def _copied(case: Case, pickled: bool, merged: bool) -> Case:  # noqa: FBT001 - drawn
    known = {name: getattr(case, name) for name in case.__dataclass_fields__}
    return Copied(**known, pickled=pickled, merged=merged and case.kind != "conv")


@copy_independent.on(
    Facet.LAYER,
    needs={Feature.COPY},
    cost=3,
    draws=DrawCopied(
        kinds=("linear", "transposed", "embedding", "conv"), rows=True, small=True, tiers=("bounded",), steps=_STEPS
    ),
)
def _(subject: Subject, case: Case) -> None:
    """A copy, by deepcopy or by pickle, gives the same bits from the same state, and shares nothing.

    Outputs, A, B, rank, scaling, which adapters there are, which are active, enabled, trainable and merged: all are
    carried over. Then whatever is done to one of the two changes nothing of the other.
    """
    assert isinstance(case, Copied)
    how = "a pickled copy" if case.pickled else "a deep copy"
    if subject.has(Feature.DISABLE):
        handle = _prepared(subject, case)
        handle.enable(on=False)
        twin = handle.copy(pickled=case.pickled)
        _must_equal(subject, _state(twin, case), _state(handle, case), f"of {how} of a disabled layer")
    for of_copy in (True, False):
        handle = _prepared(subject, case)
        before = _state(handle, case)
        twin = handle.copy(pickled=case.pickled)
        _must_equal(subject, _state(twin, case), before, f"of {how}")
        changed, kept = (twin, handle) if of_copy else (handle, twin)
        whose = f"of the original, while {how} changed" if of_copy else f"of {how}, while the original changed"
        for operation in ("unmerge", *case.operations, "merge"):
            if operation not in _NEEDS or subject.has(_NEEDS[operation]):
                _apply(subject, changed, case, operation)
                _must_equal(subject, _state(kept, case), before, f"{whose} ({operation})")


def _prepared(subject: Subject, case: Copied) -> Handle:
    handle = subject.attach(case)
    if subject.has(Feature.MULTI_ADAPTER):
        spec, a, b = case.adapters[1]
        law = not spec.rslora and subject.has(Feature.RSLORA)  # the other scaling law than that of the first
        handle.add("second", replace(spec, rslora=law), a, b)
        handle.activate(*(("second",) if case.swapped else ("default", "second")))
    if subject.has(Feature.RUNTIME_SCALE):
        handle.set_scale(2.0)
    handle.forward(case.arrays.x)
    if case.merged:
        handle.merge()
    return handle


_State = tuple[Array, dict[str, Array], set[str]]


def _state(handle: Handle, case: Several) -> _State:
    tensors = handle.tensors()
    trainable = {name for name, tensor in tensors.items() if tensor.trainable}
    return handle.forward(case.arrays.x), {name: tensor.value for name, tensor in tensors.items()}, trainable


def _must_equal(subject: Subject, now: _State, before: _State, whose: str) -> None:
    names, expected = ", ".join(sorted(now[1])), ", ".join(sorted(before[1]))
    must(names == expected, f"tensors {whose}", expected, names)
    for name, value in before[1].items():
        subject.judge.same(f"{name} {whose}", now[1][name], value)
    trained, wanted = ", ".join(sorted(now[2])) or "none", ", ".join(sorted(before[2])) or "none"
    must(trained == wanted, f"trainable tensors {whose}", wanted, trained)
    subject.judge.same(f"y {whose}", now[0], before[0])


def _apply(subject: Subject, handle: Handle, case: Several, operation: str) -> None:
    """One change; a layer that is merged, or is not, may refuse it, which changes nothing either."""
    x, dy = case.arrays.x, case.arrays.dy
    try:
        if operation == "write":
            handle.write(-case.arrays.a, case.arrays.b)
        elif operation == "step":
            handle.step(x, dy, lr=0.5, weight_decay=0.1)
        elif operation == "merge" and case.kind != "conv":
            handle.merge()
        elif operation == "unmerge":
            handle.unmerge()
        elif operation == "disable":
            handle.enable(on=False)
        elif operation == "rescale":
            for adapter in ("default", "second") if subject.has(Feature.MULTI_ADAPTER) else ("default",):
                handle.set_scale(0.5, adapter)
        elif operation == "switch":
            handle.activate("default")
    except Exception:  # noqa: BLE001 - any exception is a refusal
        return


@copy_independent.on(Facet.MODEL, needs={Feature.COPY}, cost=25, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    """On a whole model: the copy answers alike, and its A and B are its own."""
    inputs = case.loaded.inputs(case.seed)
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    before = _answers(handle, inputs)
    for pickled in (False, True):
        how = "a pickled copy" if pickled else "a deep copy"
        twin = handle.copy(pickled=pickled)
        sites, wanted = sorted(twin.sites()), sorted(handle.sites())
        must(sites == wanted, f"adapted modules of {how}", ", ".join(wanted), ", ".join(sites))
        for path in wanted:
            same = twin.spec_at(path) == handle.spec_at(path)
            must(same, f"rank and scaling at {path} of {how}", handle.spec_at(path), twin.spec_at(path))
        _same(subject, _answers(twin, inputs), before, f"of {how}")
        case.fill(twin, shift=1)
        changed = _answers(twin, inputs)
        _same(subject, _answers(handle, inputs), before, f"of the original, while {how} changed")
        moved = any((new != old).any() for new, old in zip(changed, before, strict=True))
        must(moved, f"outputs of {how} with other values in its A and B", "other values", "the same values")
        case.fill(handle, shift=2)
        _same(subject, _answers(twin, inputs), changed, f"of {how}, while the original changed")
        case.fill(handle)


def _answers(handle: ModelHandle, inputs: dict[str, torch.Tensor]) -> list[Array]:
    with torch.no_grad():
        return [to_numpy(output) for output in outputs(handle.module.eval(), inputs)]


def _same(subject: Subject, got: list[Array], wanted: list[Array], whose: str) -> None:
    for nth, (new, old) in enumerate(zip(got, wanted, strict=True)):
        subject.judge.same(f"output {nth} {whose}", new, old)
