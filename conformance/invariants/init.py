"""Initial values: the documented law, from the seed alone, also on memory that held something else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Handle, Weights
from conformance.dropout import judge_frequency
from conformance.invariant import invariant
from conformance.laws import judge_law
from conformance.strategies import ALPHAS, Draw
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.spec import LoraSpec

init_distribution = invariant("init-distribution", family="init", after=("identity-at-init",))
init_reproducible = invariant("init-reproducible", family="init", after=("identity-at-init",))

_VALUES = 2**13  # pooled over seeds
_LARGE = (31, 16, 53, 64, 97)  # inputs, outputs


@dataclass(frozen=True)
class DrawInit(Draw):
    """Layers with many values in A and B, of the kinds for which the backend declares a law."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return _large(super().__call__(subject))

    def kinds_of(self, manifest: Any) -> Any:
        return [kind for kind in super().kinds_of(manifest) if kind in manifest.init]

    def lacking(self, subject: Subject) -> str:
        return "" if self.kinds_of(subject.manifest) else "declares no law for initial values"


@st.composite
def _large(draw: DrawFn, plain: SearchStrategy[Case]) -> Case:
    case, size = draw(plain), st.sampled_from(_LARGE)
    r = draw(st.sampled_from((16, 33, 12)))
    fields: dict[str, Any] = {"alpha": draw(st.sampled_from([alpha for alpha in ALPHAS if alpha != r])), "r": r}
    fields |= {"in_features": draw(size), "out_features": draw(size), "tier": "bounded", "lead": (1,)}
    fields["seed"] = draw(st.integers(0, 2**31 - 1))
    if case.kind == "fused":
        fields["parts"] = tuple(8 * n for n in case.parts)
        fields["out_features"] = sum(fields["parts"])
    if case.kind == "experts":
        fields["index"] = (0,)
    return replace(case, **fields)


@init_distribution.on(
    Facet.LAYER, needs={Feature.INIT}, cost=10, draws=DrawInit(tiers=("bounded",), rows=True, rslora=False)
)
def _(subject: Subject, case: Case) -> None:
    """The factor that is not zero follows the law that the backend documents, for every shape; the other is all zero.

    Values of several seeds are pooled, made standard by the law's own scale, and held against its distribution
    function and its bounds; neighbours in rows and columns, and successive seeds, are independent. The false alarms of
    all tests together have a probability of at most 1e-11 a case.
    """
    _judge_distribution(subject, case, subject.layer.attach, "")
    if subject.has(Feature.META):
        _judge_distribution(subject, case, subject.layer.materialise, " of layers that were built on the meta device")


def _judge_distribution(subject: Subject, case: Case, make: Callable[[LoraSpec, Weights], Handle], which: str) -> None:
    zero = subject.manifest.zero_factor.get(case.kind, "b")
    drawn: list[Array] = []
    pooled = 0
    while pooled < _VALUES or len(drawn) < 2:
        one = replace(case, seed=case.seed + len(drawn)).weights(factors=False)
        a, b = _initial(make(case.spec, one))
        none, some = (a, b) if zero == "a" else (b, a)
        must(not none.any(), f"{zero.upper()} at initialisation", "all zero", f"{np.abs(none).max():.3g} at most")
        drawn.append(some)
        pooled += some.size
    name = f"{'B' if zero == 'a' else 'A'}{which}"
    values = np.stack(drawn)  # (seeds, r, fan_in), or (seeds, out, r) where A is the zero factor
    fan_in = math.prod(case.geometry.a_shape(1)[1:]) if zero == "b" else case.r
    law = subject.manifest.init[case.kind]
    judge_law(f"{name} over {len(values)} seeds", values, law, fan_in, case.r, case.narrowest)
    signs = values > 0
    for what, axis in (("successive seeds", 0), ("neighbouring rows", 1), ("neighbouring columns", 2)):
        pairs = signs.shape[axis] // 2 * 2
        first, second = (np.take(signs, range(start, pairs, 2), axis) for start in (0, 1))
        if first.size:
            judge_frequency(f"share of equal signs in {what} of {name}", first == second, 0.5)


@init_reproducible.on(Facet.LAYER, needs={Feature.INIT}, cost=2, draws=Draw(rows=True, small=True))
def _(subject: Subject, case: Case) -> None:
    """The same seed gives the same initial bits, another one gives others, whatever was drawn in between.

    A layer that is built on the meta device, and given memory that holds NaN, is filled in completely: every value is
    finite, one factor is zero and the other one drawn, and the output is the base layer's, bit for bit.
    """
    first = _initial(subject.attach(case, factors=False))
    other = _initial(subject.attach(replace(case, seed=case.seed ^ 1), factors=False))
    again = _initial(subject.attach(case, factors=False))
    for name, before, after in zip("AB", first, again, strict=True):
        subject.judge.same(f"{name} of the same seed", after, before)
    differ = any((before != after).any() for before, after in zip(first, other, strict=True))
    must(differ, "A and B of another seed", "other values", "the same values")
    if not subject.has(Feature.META):
        return
    handle = subject.layer.materialise(case.spec, case.weights(factors=False))
    zero = subject.manifest.zero_factor.get(case.kind, "b")
    for name, factor in zip("ab", _initial(handle), strict=True):
        what = f"{name.upper()} of a layer that was built on the meta device"
        must(np.isfinite(factor).all(), what, "finite values", "NaN or infinite")
        if name == zero:
            must(not factor.any(), what, "all zero", f"{np.abs(factor).max():.3g} at most")
        else:
            must(factor.any(), what, "non-zero values", "all zero")
    oracle = case.oracle_of(np.zeros_like(case.arrays.a), np.zeros_like(case.arrays.b), subject.manifest)
    expected = oracle.base_forward(case.arrays.x)
    y = handle.forward(case.arrays.x)
    subject.judge("y of a layer that was built on the meta device", y, expected, exact=case.tier == "exact")


def _initial(handle: Handle) -> tuple[Array, Array]:
    state = handle.tensors()
    return state["a:default"].value.astype(np.float64), state["b:default"].value.astype(np.float64)
