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


def exact(value: Array | float) -> Bounded:
    array = np.asarray(value, dtype=np.float64)
    return Bounded(array, np.zeros_like(array))


@dataclass(frozen=True)
class Arithmetic:
    """Results stored in ``storage``, sums of products accumulated in ``accumulate`` (dtype names)."""

    storage: str
    accumulate: str = "float32"

    def round(self, x: Bounded) -> Bounded:
        """x rounded once to the storage dtype."""
        return Bounded(x.value, x.bound + UNIT_ROUNDOFF[self.storage] * x.magnitude + HALF_SUBNORMAL[self.storage])

    def dot(self, p: Bounded, q: Bounded, *, fold: Fold | None = None) -> Bounded:
        """p (m, n) @ q (n, k), accumulated, then rounded to the storage dtype where that is narrower.

        Terms that are exactly zero are not counted: they round nothing. ``fold`` continues the same accumulation by
        adding up elements of the product, as a convolution's input gradient does over the taps of its kernel.
        """
        terms = (p.magnitude != 0).astype(np.float64) @ (q.magnitude != 0).astype(np.float64)
        value = p.value @ q.value
        bound = p.bound @ q.magnitude + np.abs(p.value) @ q.bound
        size = p.magnitude @ q.magnitude
        if fold is not None:
            value, bound, size, terms = fold(value), fold(bound), fold(size), fold(terms)
        u = UNIT_ROUNDOFF[self.accumulate]
        result = Bounded(value, bound + u * np.minimum(terms, LAMBDA * np.sqrt(terms)) * size)
        return self.round(result) if UNIT_ROUNDOFF[self.storage] > u else result
