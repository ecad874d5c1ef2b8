"""DoRA in closed form, in float64, with the rounding error that a correct implementation may show.

    V  = W + s B A      n_i = ‖V_i‖₂ over the inputs of output i      c = m / n
    y  = c (x Wᵀ + s (x Aᵀ) Bᵀ) + bias      W' = diag(c) V
    dm = Σ_rows dy (x Wᵀ + s (x Aᵀ) Bᵀ) / n      dA, dB, dx: as without DoRA, with c dy in place of dy

Source: "DoRA" (Liu et al., 2024, arXiv:2402.09353), equation 5; n is a constant for autograd (section 4.3), so that A
and B get no gradient through it. m (out,) starts as n, and a fresh adapter is the base. The norm has one number for
each output, taken over its inputs, whichever way W is stored: PEFT's reading of the paper's "norm of each column". The
bias is not scaled.

Two things that the paper leaves open. A row with n = 0 has no direction: y is the bias there whatever c is, so c is any
finite number, dm is 0, and only dB depends on the choice. Dropout acts on A's input ("delta"), or on the input of all
that is added to the base, (c - 1) x Wᵀ too ("change"), as in the authors' code; with p = 0 the two agree.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_ref.geometry import Array, Linear
from lora_ref.oracle import Gradients, Oracle
from lora_ref.rounding import LARGEST, Bounded, exact

DoraDropout = Literal["delta", "change"]


class DoraOracle(Oracle):
    """The expected results of one DoRA adapter; arguments as in ``Oracle``, and m (out,), None for a fresh one.

    Every bound covers the two ways of computing: scaling the sum by c, and adding (c - 1) x Wᵀ and c times the delta to
    the base's output. V and its norm may be formed in the narrowest dtype.
    """

    geometry: Linear

    def __init__(self, *layer: Any, m: ArrayLike | None, dora_dropout: DoraDropout = "delta", **numerics: Any) -> None:
        super().__init__(*layer, **numerics)
        self.magnitude = self.norm if m is None else exact(np.asarray(m).astype(np.float64)[None, :])  # (1, N)
        self.dropped = dora_dropout

    @cached_property
    def norm(self) -> Bounded:
        """n (1, N), as stored; of a fresh adapter also m."""
        return self.narrow.norm(super()._merged_matrix(narrow=True)).T

    @cached_property
    def undefined(self) -> NDArray[np.bool_]:
        """The outputs (1, N) whose row of V is zero."""
        return np.equal(self.norm.value, 0)

    @cached_property
    def factor(self) -> Bounded:
        """c (1, N), and 0 where it is undefined."""
        return self._defined(self.narrow.round(self.magnitude / self.norm))

    def forward(self, x: ArrayLike, mask: Array | None = None) -> Bounded:
        x = np.asarray(x).astype(np.float64)
        rounded, c = self.narrow.round, self.factor
        out, scaled = self._base_rows(x), self._scaled_rows(x, mask)  # (M, N)
        delta = self._delta_rows(x, mask)  # (M, N)
        change = rounded(rounded(rounded(c - exact(1.0)) * scaled) + rounded(c * delta))
        y = self.base.round(out + change)
        if mask is None or self.dropped == "delta":
            whole = rounded(c * rounded(scaled + delta))
            y = y.either(self.base.round(whole if self.bias is None else whole + self.bias))
        return self._as_output(y, x.shape)

    def delta(self, x: ArrayLike, mask: Array | None = None) -> Bounded:
        """All that the adapter adds: y less the base's output."""
        return self.forward(x, mask) - self.base_forward(x)

    def gradients(self, x: ArrayLike, dy: ArrayLike, mask: Array | None = None) -> Gradients:
        """dx, dA, dB and dm of the scalar sum(y * dy)."""
        x = np.asarray(x).astype(np.float64)
        d_y = exact(self.geometry.y_rows(np.asarray(dy).astype(np.float64)))  # (M, N)
        rounded, c = self.narrow.round, self.factor
        d_sum = rounded(d_y * c)  # (M, N)
        dx_delta, da, db = self._branch_gradients(x, d_sum, mask)
        dx_delta = self.base.round(dx_delta)
        dx_scaled = self._base_gradient(x, rounded(d_y * rounded(c - exact(1.0))))
        if mask is not None and self.dropped == "change":
            dx_scaled = rounded(dx_scaled.times(mask))
        dx = self.base.round(self.base.round(self._base_gradient(x, d_y) + dx_scaled) + dx_delta)
        if mask is None or self.dropped == "delta":
            dx = dx.either(self.base.round(self._base_gradient(x, d_sum) + dx_delta))
        anything = np.where(self.undefined.T, LARGEST[self.adapter.storage] / 2, db.bound)  # that is finite
        return Gradients(dx, da, replace(db, bound=anything), self._magnitude_gradient(x, d_y, mask))

    def _magnitude_gradient(self, x: Array, d_y: Bounded, mask: Array | None) -> Bounded:
        rounded, ones = self.narrow.round, exact(np.ones((1, len(d_y.value))))
        scaled, delta = self._scaled_rows(x, mask), self._delta_rows(x, mask)  # (M, N)
        whole = self.narrow.dot(ones, rounded(d_y * rounded(scaled + delta)))  # (1, N)
        parts = [self.narrow.dot(ones, rounded(d_y * part)) for part in (scaled, delta)]
        dm = self._defined(rounded(whole.either(rounded(parts[0] + parts[1])) / self.norm))
        return Bounded(dm.value[0], dm.bound[0])  # (N,)

    def _scaled_rows(self, x: Array, mask: Array | None) -> Bounded:
        """The base's share (M, N) of what c scales: its output less the bias, or the product alone."""
        if mask is not None and self.dropped == "change":
            return self.base.dot(self.base.round(exact(self.geometry.rows(x * mask))), self.w.T)
        out = self._base_rows(x)
        return out if self.bias is None else self.base.round(out - self.bias)

    def _merged_matrix(self, *, narrow: bool) -> Bounded:
        """W' (N, K): c times V, or W plus what c V differs from it."""
        formed = (self.narrow if narrow else self.wide).round
        scaled = formed(self.factor.T * super()._merged_matrix(narrow=narrow))
        return self.base.round(scaled).either(self.base.round(self.w + formed(scaled - self.w)))

    def delta_weight(self, *, narrow: bool = False) -> Bounded:
        """W' - W in the shape of W."""
        return self._as_weight(self._merged_matrix(narrow=narrow) - self.w)

    def restored_weight(self) -> Bounded:
        """W after a merge and an unmerge by (W' / c) - s·B·A, each step rounded to W's dtype, c and B·A as before."""
        rounded, size = self.base.round, np.abs(self.w.value)
        c = np.abs(self.factor.value.T)  # (N, 1)
        v = rounded(exact(size + self._delta_matrix(narrow=True).magnitude))
        merged = rounded(v.times(c))
        change = rounded(Bounded(merged.value + size, merged.bound))  # where W' is formed as W + (c V - W)
        merged = merged.either(rounded(Bounded(merged.value, change.bound)))
        back = np.divide(merged.bound, c, out=np.zeros_like(size), where=c > 0)
        back = rounded(Bounded(v.value, back)).bound
        return self._as_weight(Bounded(self.w.value, rounded(Bounded(size, back)).bound))

    def _defined(self, x: Bounded) -> Bounded:
        return Bounded(np.where(self.undefined, 0.0, x.value), np.where(self.undefined, 0.0, x.bound))
