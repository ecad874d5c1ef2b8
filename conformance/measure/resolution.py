"""The smallest relative error that is found, by dtype and tier, beside what allclose finds in the same cases.

An error is planted in an otherwise right implementation: in the scaling, in one element of B, or in one element of the
gradient of A. A trial is 50 drawn cases, and finds the error if any of them does. The resolution is the smallest power
of two times the unit roundoff u that at least 99 of 100 trials find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import hypothesis
import numpy as np
from hypothesis import HealthCheck

from conformance.backends.numpy import NumpyOperator
from conformance.backends.numpy import backend as numpy_backend
from conformance.cases import Case, Tier
from conformance.contract import Array, Facet, Grads
from conformance.judge import Judge
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import Violation
from lora_ref.rounding import UNIT_ROUNDOFF, Bounded

Place = Literal["scaling", "element of B", "gradient entry"]
PLACES: tuple[Place, ...] = ("scaling", "element of B", "gradient entry")
WAYS = ("this suite", "allclose at 1e-3", "allclose at 1e-5")  # rtol = atol
TRIALS, CASES, FOUND = 100, 50, 0.99
_EXPONENTS = range(-1, 25)


@dataclass(frozen=True)
class Setting:
    dtype: str
    tier: Tier
    place: Place
    seed: int = 0


@dataclass(frozen=True)
class Resolution:
    """``smallest``: the relative error that a way of judging finds, None where even the largest tried escapes.

    ``alarms``: the share of cases in which it objects to the right implementation; with any, its smallest error means
    nothing. Both in the order of ``WAYS``.
    """

    setting: Setting
    smallest: tuple[float | None, ...]
    alarms: tuple[float, ...]


def measure(setting: Setting) -> Resolution:
    """Judge the same cases in all ways."""
    cases = _drawn(setting)
    finders = [_suite_finds, _allclose_finds(1e-3), _allclose_finds(1e-5)]
    right = [_planted(case, "scaling", 0.0) for case in cases]
    alarms = [float(np.mean([finds(*pair) for pair in zip(cases, right, strict=True)])) for finds in finders]
    return Resolution(setting, tuple(_smallest(setting, cases, finds) for finds in finders), tuple(alarms))


def _drawn(setting: Setting) -> list[Case]:
    cases: list[Case] = []
    subject = Subject(numpy_backend, Facet.OPERATOR, setting.dtype)
    draw = Draw(kinds=("linear",), tiers=(setting.tier,), rows=True, mixed=False)

    @hypothesis.seed(setting.seed)
    @hypothesis.settings(
        max_examples=TRIALS * CASES,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(draw(subject))
    def collect(case: Case) -> None:
        cases.append(case)

    collect()
    return cases


def _smallest(setting: Setting, cases: list[Case], finds: Callable[[Case, Grads], bool]) -> float | None:
    """Bisection over the exponents; a larger error is never harder to find."""
    trials = [cases[i : i + CASES] for i in range(0, len(cases) - CASES + 1, CASES)]
    allowed = len(trials) - int(np.ceil(FOUND * len(trials)))

    def enough(exponent: int) -> bool:
        error, missed = UNIT_ROUNDOFF[setting.dtype] * 2.0**exponent, 0
        for trial in trials:
            if not any(finds(case, _planted(case, setting.place, error)) for case in trial):
                missed += 1
                if missed > allowed:
                    return False
        return True

    low, high = 0, len(_EXPONENTS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(_EXPONENTS[middle]) else (middle + 1, high)
    return None if low == len(_EXPONENTS) else UNIT_ROUNDOFF[setting.dtype] * 2.0 ** _EXPONENTS[low]


def _planted(case: Case, place: Place, error: float) -> Grads:
    """What an implementation gives that is wrong by ``error`` in one place."""
    spec, weights = case.spec, case.weights()
    assert weights.b is not None
    if place == "scaling":
        spec = replace(spec, alpha=spec.alpha * (1 + error))
    if place == "element of B":
        weights = replace(weights, b=_off(weights.b, error))
    grads = NumpyOperator().vjp(spec, weights, case.arrays.x, case.arrays.dy)
    if place == "gradient entry":
        assert grads.da is not None
        grads = replace(grads, da=_off(grads.da, error))
    return grads


def _off(array: Array, error: float) -> Array:
    """The largest element is off by a relative ``error``, as far as the dtype can hold that."""
    changed = array.copy()
    at = np.unravel_index(int(np.argmax(np.abs(array.astype(np.float64)))), array.shape)
    changed[at] = (array[at].astype(np.float64) * (1 + error)).astype(array.dtype)
    return changed


def _expected(case: Case) -> list[tuple[str, Bounded]]:
    oracle = case.oracle(numpy_backend.manifest)
    gradients = oracle.gradients(case.arrays.x, case.arrays.dy)
    assert gradients.x is not None
    return [
        ("y", oracle.forward(case.arrays.x)),
        ("da", gradients.a),
        ("db", gradients.b),
        ("dx", gradients.x),
    ]


def _suite_finds(case: Case, grads: Grads) -> bool:
    try:
        for name, expected in _expected(case):
            Judge()(name, getattr(grads, name), expected, exact=case.tier == "exact")
    except Violation:
        return True
    return False


def _allclose_finds(tolerance: float) -> Callable[[Case, Grads], bool]:
    def finds(case: Case, grads: Grads) -> bool:
        pairs = [(getattr(grads, name), expected.value) for name, expected in _expected(case)]
        return not all(np.allclose(got.astype(np.float64), want, tolerance, tolerance) for got, want in pairs)

    return finds
