"""Scaling: s = alpha/r (or alpha/sqrt(r)), once, everywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Facet, Feature
from conformance.invariant import invariant
from conformance.strategies import ALPHAS, Draw
from conformance.subject import Subject

scaling_law = invariant("scaling-law", family="scaling", after=("forward-oracle",))
scaling_once = invariant("scaling-once", family="scaling", after=("scaling-law",))
scale_runtime = invariant("scale-runtime", family="scaling", after=("scaling-law",))


@dataclass(frozen=True)
class DrawScaling(Draw):
    """Ranks and alphas over the whole range in use, on a layer whose output is the scaling itself."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        rslora = st.booleans() if subject.has(Feature.RSLORA) else st.just(value=False)
        alpha = st.sampled_from(ALPHAS) | st.sampled_from((0.5, 1.5, 0.1, 7.3, 64.0, 128.0, 1000.0))
        return st.builds(
            Case,
            in_features=st.just(1),
            out_features=st.just(1),
            r=st.integers(2, 9) | st.sampled_from((1, 16, 63, 64, 128, 256)),
            alpha=alpha,
            lead=st.just((1,)),
            tier=st.just("bounded"),
            dtype=st.just(subject.dtype),
            rslora=rslora,
            base_zero=st.just(value=True),
        ).filter(lambda case: case.alpha != case.r)


@scaling_law.on(Facet.OPERATOR, Facet.LAYER, draws=DrawScaling())
def _(subject: Subject, case: Case) -> None:
    """The multiplier of B·A is alpha/r, or alpha/sqrt(r) where rsLoRA is asked for; it is a real number.

    Seen with W = 0, x = 1 and A, B that are zero but for their first element, which is 1: then y = s. Sources: Hu et
    al., 2021, section 4.1; Kalajdzievski, 2023, arXiv:2312.03732.
    """
    a, b = np.zeros_like(case.arrays.a), np.zeros_like(case.arrays.b)
    a[0, 0] = b[0, 0] = 1
    x = np.ones_like(case.arrays.x)
    weights = replace(case.weights(), a=a, b=b)
    y = subject.vjp_of(case.spec, weights, x, x).y
    expected = case.oracle_of(a, b, subject.manifest).forward(x)
    subject.judge("y, which is s,", y, expected, exact=False, delta=expected.value, spec=case.spec)


@scaling_once.on(
    Facet.OPERATOR, Facet.LAYER, draws=Draw(kinds=("linear", "transposed", "embedding"), tiers=("exact",), rows=True)
)
def _(subject: Subject, case: Case) -> None:
    """Doubling alpha doubles the delta in the output, in every gradient and in the merged weight, bit for bit.

    s enters each of them exactly once; twice would give four times the delta, never no change at all. W = 0 here.
    """
    case = replace(case, base_zero=True, bias=False)
    weights, x, dy = case.weights(), case.arrays.x, case.arrays.dy
    double = replace(case.spec, alpha=2 * case.alpha)
    once, twice = subject.vjp_of(case.spec, weights, x, dy), subject.vjp_of(double, weights, x, dy)
    for name in ("y", "dx", "da", "db"):
        before, after = getattr(once, name), getattr(twice, name)
        if before is not None:
            subject.judge.same(f"{name} with twice the alpha", after, 2 * before.astype(np.float64))
    if subject.facet is Facet.LAYER and subject.has(Feature.MERGE):
        merged = []
        for spec in (case.spec, double):
            handle = subject.layer.attach(spec, weights)
            handle.merge()
            merged.append(handle.effective_weight())
        subject.judge.same("W' with twice the alpha", merged[1], 2 * merged[0].astype(np.float64))


@scale_runtime.on(
    Facet.LAYER,
    needs={Feature.RUNTIME_SCALE},
    cost=2,
    draws=Draw(kinds=("linear", "transposed", "embedding"), tiers=("exact",), rows=True, headroom=1),
)
def _(subject: Subject, case: Case) -> None:
    """A runtime scale multiplies the delta on every path alike: output, gradients and merged weight.

    0 gives the base layer, 1 gives the spec's own scaling back (rsLoRA's too), and the last value set counts.
    """
    handle, x = subject.attach(case), case.arrays.x
    for factor in (2.0, 0.5, 0.0, 1.0, 0.5):
        handle.set_scale(factor)
        oracle = case.oracle(subject.manifest, factor=factor)
        delta = oracle.delta(x).value
        what = f"at a runtime scale of {factor:g}"
        subject.judge(f"y {what}", handle.forward(x), oracle.forward(x), exact=True, delta=delta, spec=case.spec)
        grads = handle.vjp(x, case.arrays.dy)
        expected = oracle.gradients(x, case.arrays.dy)
        subject.judge(f"dA {what}", grads.da, expected.a, exact=True, spec=case.spec)
        subject.judge(f"dB {what}", grads.db, expected.b, exact=True, spec=case.spec)
    if subject.has(Feature.MERGE):
        handle.forward(x)
        handle.merge()
        oracle = case.oracle(subject.manifest, factor=0.5)
        subject.judge("W' at a runtime scale of 0.5", handle.effective_weight(), oracle.merged_weight(), exact=True,
                      delta=oracle.delta_weight().value, spec=case.spec)  # fmt: skip
