"""Adapters that start from the weight itself (PiSSA, OLoRA), over a base that keeps the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Handle, ModelHandle
from conformance.invariant import invariant
from conformance.invariants.persistence import folder
from conformance.model_cases import DrawModel, ModelCase
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must
from lora_ref.residual import departures
from lora_ref.rounding import Arithmetic, Bounded, exact

residual_init_preserves = invariant(
    "residual-init-preserves", family="variants", after=("forward-oracle", "grad-oracle", "merge-delta-oracle")
)

Operation = Literal["train", "disable", "switch"]
_NEEDS: dict[Operation, frozenset[Feature]] = {
    "train": frozenset(),
    "disable": frozenset({Feature.DISABLE}),
    "switch": frozenset({Feature.MULTI_ADAPTER}),
}
_EXACT = Arithmetic("float64", "float64")


@dataclass(frozen=True)
class ResidualCase(Case):
    """A case whose adapter starts from the weight, and what is then done with it."""

    operation: Operation = "train"


class DrawResidual(Draw):
    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        able = [op for op in get_args(Operation) if _NEEDS[op] <= subject.manifest.features]
        return st.builds(_with, super().__call__(subject), st.sampled_from(("pissa", "olora")), st.sampled_from(able))

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return ResidualCase.from_fields(given)


def _with(case: Case, init: Any, operation: Operation) -> Case:
    """A rank that the weight has, and never alpha."""
    values = {name: getattr(case, name) for name in Case.__dataclass_fields__}
    r = min(case.r, case.in_features, case.out_features)
    alpha = case.alpha if case.alpha != r else case.alpha + 1
    return ResidualCase(**{**values, "init": init, "r": r, "alpha": alpha, "base_zero": False}, operation=operation)


@residual_init_preserves.on(
    Facet.LAYER,
    needs={Feature.RESIDUAL_INIT, Feature.INIT},
    dtypes=("float32",),
    draws=DrawResidual(kinds=("linear", "transposed"), tiers=("bounded",), rows=True, small=True),
)
def _(subject: Subject, case: Case) -> None:
    """An adapter that starts from the weight changes nothing at first, and never what others see of the base.

    It trains W - s B₀ A₀ + s B A, A (r, in), B (out, r), with A₀, B₀ the first values. At the start y = x Wᵀ + bias up
    to rounding. For PiSSA s B₀ A₀ is the best approximation of W of rank r, for OLoRA B₀ A₀ is Q R of W cut to rank r.
    With other values of A and B output, gradients and merged weight are the closed form's. Disabling gives the original
    base bit for bit, and another adapter that is active alone sees it too. Saved, it is a plain adapter of the original
    base, with the same delta. Sources: Meng et al., 2024, arXiv:2404.02948; Büyükakyüz, 2024, arXiv:2406.01775.
    """
    assert isinstance(case, ResidualCase)
    handle = subject.attach(case, factors=False)
    state = handle.tensors()
    a0, b0 = state["a:default"].value, state["b:default"].value
    _start(subject, case, handle, a0, b0)
    if case.operation == "train":
        _train(subject, case, handle, a0, b0)
    elif case.operation == "disable":
        _disable(subject, case, handle)
    else:
        _switch(subject, case, handle)


def _start(subject: Subject, case: Case, handle: Handle, a0: Array, b0: Array) -> None:
    oracle = case.residual_oracle(a0, b0, a0, b0, subject.manifest)
    subject.judge("y at the start", handle.forward(case.arrays.x), oracle.forward(case.arrays.x), exact=False)
    w = case.geometry.weight_matrix(case.arrays.w.astype(np.float64))
    first = (a0.astype(np.float64), b0.astype(np.float64))
    for what, (found, expected) in departures(case.init, w, *first, case.spec.scaling, case.dtype).items():
        subject.judge(what, np.array([found]), expected, exact=False)


def _train(subject: Subject, case: Case, handle: Handle, a0: Array, b0: Array) -> None:
    x, dy = case.arrays.x, case.arrays.dy
    handle.write(case.arrays.a, case.arrays.b)
    oracle = case.residual_oracle(a0, b0, case.arrays.a, case.arrays.b, subject.manifest)
    grads, expected = handle.vjp(x, dy), oracle.gradients(x, dy)
    assert expected.x is not None
    subject.judge("y after training", grads.y, oracle.forward(x), exact=False)
    subject.judge("dA after training", grads.da, expected.a, exact=False, spec=case.spec)
    subject.judge("dB after training", grads.db, expected.b, exact=False, spec=case.spec)
    subject.judge("dx after training", grads.dx, expected.x, exact=False)
    if subject.has(Feature.MERGE):
        handle.merge()
        subject.judge("W'", handle.effective_weight(), oracle.merged_weight(), exact=False)


def _disable(subject: Subject, case: Case, handle: Handle) -> None:
    plain = subject.attach(replace(case, init="default"))
    for each in (plain, handle):
        each.enable(False)  # noqa: FBT003
    subject.judge.same("y while disabled", handle.forward(case.arrays.x), plain.forward(case.arrays.x))


def _switch(subject: Subject, case: Case, handle: Handle) -> None:
    spec, other, x = replace(case.spec, init="default"), case.sibling(1).arrays, case.arrays.x
    handle.add("second", spec, other.a, other.b)
    handle.activate("second")
    oracle = case.oracle_of(other.a, other.b, subject.manifest, spec=spec)
    delta = oracle.delta(x).value
    subject.judge("y of a second adapter", handle.forward(x), oracle.forward(x), exact=False, delta=delta, spec=spec)


class DrawResidualModel(DrawModel):
    def __call__(self, subject: Subject) -> SearchStrategy[ModelCase]:
        init: Any = st.sampled_from(("pissa", "olora"))
        return st.builds(lambda case, init: replace(case, init=init), super().__call__(subject), init)


@residual_init_preserves.on(
    Facet.STORE, needs={Feature.RESIDUAL_INIT}, cost=10, dtypes=("float32",), draws=DrawResidualModel(patterns=True)
)
def _(subject: Subject, case: ModelCase) -> None:
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    first = _factors(handle)
    case.fill(handle)
    trained = _factors(handle)
    laws = {path: handle.spec_at(path)[1] for path in trained}
    with folder() as saved:
        subject.store.dump(handle, saved)
        fresh = case.loaded.fresh()
        back = subject.store.load(fresh, saved)
    paths = sorted(back.sites())
    must(paths == sorted(trained), "modules adapted after loading", ", ".join(sorted(trained)), ", ".join(paths))
    for path, (a, b) in _factors(back).items():
        expected = _delta(*trained[path], laws[path]) - _delta(*first[path], laws[path])
        got = _delta(a, b, back.spec_at(path)[1])  # which is known only up to its own rounding
        subject.judge(f"delta of {path} after loading", got.value, _either(expected, got), exact=False)
    wanted = {name: to_numpy(tensor) for name, tensor in case.loaded.fresh().state_dict().items()}
    for name, tensor in back.base_tensors().items():
        if name in wanted:
            subject.judge.same(f"{name} of the base after loading", to_numpy(tensor), wanted[name])


def _factors(handle: ModelHandle) -> dict[str, tuple[Array, Array]]:
    found = {path: handle.factors(path) for path in handle.sites()}
    return {path: (to_numpy(a), to_numpy(b)) for path, (a, b) in found.items()}


def _delta(a: Array, b: Array, s: float) -> Bounded:
    """s·B·A in float64, with the rounding of that and of s."""
    product = _EXACT.dot(exact(b.astype(np.float64)), exact(a.astype(np.float64)))
    return _EXACT.round(_EXACT.round(product.times(s)))


def _either(expected: Bounded, got: Bounded) -> Bounded:
    return Bounded(expected.value, expected.bound + got.bound)
