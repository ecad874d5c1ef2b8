"""Expected against got: exact bits, or a derived bound; never a tolerance chosen by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conformance.causes import explain
from conformance.contract import Array
from conformance.violation import Finding, Violation
from lora_ref.geometry import Array as Float64
from lora_ref.rounding import Bounded
from lora_ref.spec import LoraSpec


@dataclass
class Judge:
    """Compares, and remembers how near the worst comparison came to its bound."""

    largest_fraction: float = 0.0

    def __call__(
        self,
        quantity: str,
        got: Array | None,
        expected: Bounded,
        *,
        exact: bool,
        delta: Float64 | None = None,
        spec: LoraSpec | None = None,
    ) -> None:
        """``delta`` is the adapter's share of ``expected``; with ``spec`` it lets a known cause be named.

        Raises:
            Violation: missing, of another shape, not finite, or an element out of its bound.
        """
        value = expected.value
        if got is None:
            raise Violation(
                Finding(quantity, f"an array of shape {value.shape}", "nothing", cause=f"{quantity} missing")
            )
        if got.shape != value.shape:
            cause = "transposed" if got.shape == value.shape[::-1] else "wrong shape"
            raise Violation(Finding(quantity, f"shape {value.shape}", f"shape {got.shape}", cause=cause))
        found = got.astype(np.float64)
        bound = np.zeros_like(value) if exact else expected.bound
        error = np.abs(found - value)
        wrong = ~(error <= bound) & np.isfinite(bound)  # so written that a NaN is wrong, unless the dtype must overflow
        if wrong.any():
            excess = np.where(np.isfinite(error), error - bound, np.inf)
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), excess.shape))
            cause = explain(found, Bounded(value, expected.bound), delta, spec)
            raise Violation(
                Finding(
                    quantity,
                    f"{value[at]:.9g}",
                    f"{found[at]:.9g}",
                    float(error[at]),
                    float(bound[at]),
                    at,
                    int(wrong.sum()),
                    wrong.size,
                    cause,
                )
            )
        if not exact and error.size:
            tight = np.divide(error, bound, out=np.zeros_like(error), where=bound > 0)
            self.largest_fraction = max(self.largest_fraction, float(tight.max()))

    def same(self, quantity: str, got: Array | None, expected: Array) -> None:
        """Equal bits (0.0 and -0.0 are equal, NaN equals nothing).

        Raises:
            Violation: any difference.
        """
        if got is not None and np.array_equal(got, expected):
            return
        self(quantity, got, Bounded(expected.astype(np.float64), np.zeros(expected.shape)), exact=True)
