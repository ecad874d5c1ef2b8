"""Numbers that carry a bound on their rounding error.

Each operation returns the exact float64 result together with an element-wise bound on how far a computation in lower
precision may stray from it. The model is the standard one, fl(a op b) = (a op b)(1 + d), |d| <= u (Higham, "Accuracy
and Stability of Numerical Algorithms", 2nd ed., section 2.2), with an absolute term for results below the normal range.

A sum of n products errs by at most g(n)·|p|·|q| with g(n) = u·min(n, λ√n). The first is the worst case in any order of
summation (section 3.1, to first order). The second is the probabilistic bound of Higham and Mary ("A new approach to
probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4): it bounds every partial sum by
its worst case, so for sums of mixed sign it keeps a further margin of about √n. With λ = 4 sums of up to 16 terms are
held to the worst case, longer ones to the probabilistic bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from lora_ref.geometry import Array

Fold = Callable[[Array], Array]

LAMBDA: Final = 4.0
UNIT_ROUNDOFF: Final = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
HALF_SUBNORMAL: Final = {"float64": 2.0**-1075, "float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
PRECISION_BITS: Final = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
LARGEST: Final = {"float64": 1.8e308, "float32": 3.4028234e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


@dataclass(frozen=True)
class Bounded:
    """An exact value and, element by element, how far a correct implementation may be from it."""

    value: Array
    bound: Array

    @property
    def magnitude(self) -> Array:
        return np.abs(self.value) + self.bound

    @property
    def T(self) -> Bounded:  # noqa: N802 - numpy's name
        return Bounded(self.value.T, self.bound.T)

    def __add__(self, other: Bounded) -> Bounded:
        """The exact sum: rounding it is a step of its own."""
        return Bounded(self.value + other.value, self.bound + other.bound)

    def times(self, factor: float | Array) -> Bounded:
        """The exact product with an exact factor."""
        return Bounded(self.value * factor, self.bound * np.abs(factor))

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.bound)

    def __sub__(self, other: Bounded) -> Bounded:
        return self + -other

    def __mul__(self, other: Bounded) -> Bounded:
        """The exact product, element by element: (p + dp)(q + dq) - pq = p dq + q dp + dp dq."""
        with np.errstate(invalid="ignore"):  # zero times no bound
            bound = np.abs(self.value) * other.bound + np.abs(other.value) * self.bound + self.bound * other.bound
        return Bounded(self.value * other.value, bound)

    def __truediv__(self, other: Bounded) -> Bounded:
        """The exact quotient: (p + dp)/(q + dq) - p/q = (dp - dq p/q)/(q + dq). A q that may be zero gives no bound."""
        nearest = np.abs(other.value) - other.bound  # the smallest that |q + dq| can be
        safe = nearest > 0
        value = np.divide(self.value, other.value, out=np.zeros(np.broadcast(self.value, nearest).shape), where=safe)
        error = self.bound + other.bound * np.abs(value)
        return Bounded(value, np.divide(error, nearest, out=np.full_like(value, np.inf), where=safe))

    def either(self, other: Bounded) -> Bounded:
        """One value that may be computed in two ways: each is within the larger bound."""
        return Bounded(self.value, np.maximum(self.bound, other.bound))


def exact(value: Array | float) -> Bounded:
    array = np.asarray(value, dtype=np.float64)
    return Bounded(array, np.zeros_like(array))


@dataclass(frozen=True)
class Arithmetic:
    """Results stored in ``storage``, sums of products accumulated in ``accumulate`` (dtype names)."""

    storage: str
    accumulate: str = "float32"

    def round(self, x: Bounded) -> Bounded:
        """x rounded once to the storage dtype; what may overflow there has no bound."""
        bound = x.bound + UNIT_ROUNDOFF[self.storage] * x.magnitude + HALF_SUBNORMAL[self.storage]
        fits = np.abs(x.value) + bound <= LARGEST[self.storage]
        return Bounded(x.value, np.where(fits, bound, np.inf))

    def dot(self, p: Bounded, q: Bounded, *, fold: Fold | None = None, parts: int = 1) -> Bounded:
        """p (m, n) @ q (n, k), accumulated, then rounded to the storage dtype where that is narrower.

        Terms that are exactly zero are not counted: they round nothing. ``fold`` moves elements of the product, and
        adds up those that meet, as a convolution's input gradient does over the taps of its kernel; torch may store
        them first and add them in the storage dtype. ``parts`` is into how many stored partial sums the product may be
        split, as a convolution's weight gradient is over the samples of a batch.
        """
        terms = (p.magnitude != 0).astype(np.float64) @ (q.magnitude != 0).astype(np.float64)
        with np.errstate(invalid="ignore"):  # 0 times a bound that is infinite: the result then has no bound either
            value = p.value @ q.value
            bound = p.bound @ q.magnitude + np.abs(p.value) @ q.bound
            size = p.magnitude @ q.magnitude
        u, stored = UNIT_ROUNDOFF[self.accumulate], UNIT_ROUNDOFF[self.storage]
        bound = bound + u * _growth(terms) * size + (parts - 1) * stored * size
        if fold is not None:
            meeting = fold(np.ones_like(value))
            value, bound, size = fold(value), fold(bound), fold(size)
            bound = bound + np.where(meeting > 1, stored * (1 + _growth(meeting)) * size, 0.0)
        result = Bounded(value, bound)
        return self.round(result) if stored > u else result

    def carried(self, x: Bounded, additions: int) -> Bounded:
        """x as what a running sum starts with: each addition may round it along."""
        grown = _growth(np.full(x.value.shape, float(additions)))
        return Bounded(x.value, x.bound + UNIT_ROUNDOFF[self.accumulate] * grown * x.magnitude)

    def norm(self, x: Bounded) -> Bounded:
        """The Euclidean norm of each row of x (m, n) -> (m, 1), squares accumulated, rounded to the storage dtype.

        | ‖x + dx‖ - ‖x‖ | <= ‖dx‖ (triangle). The sum of n squares errs by g(n) of itself, of which the root keeps
        half, and rounds once; squares below the normal range lose at most n·η, whose root is what the norm loses.
        """
        value = np.sqrt((x.value**2).sum(axis=1, keepdims=True))  # (m, 1)
        spread = np.sqrt((x.bound**2).sum(axis=1, keepdims=True))
        terms = (x.magnitude != 0).sum(axis=1, keepdims=True).astype(np.float64)
        u, lost = UNIT_ROUNDOFF[self.accumulate], np.sqrt(terms * HALF_SUBNORMAL[self.accumulate])
        relative = u * np.minimum(terms, LAMBDA * np.sqrt(terms)) / 2 + u
        return self.round(Bounded(value, spread + relative * (value + spread) + lost))


def _growth(terms: Array) -> Array:
    """g(n)/u: in units of roundoff, how much a sum of n terms may err."""
    return np.minimum(terms, LAMBDA * np.sqrt(terms))
