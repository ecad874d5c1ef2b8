"""LoRA in closed form, in float64, with the rounding error that a correct implementation may show.

    y  = x Wᵀ + bias + s (x Aᵀ) Bᵀ                       (Hu et al., 2021, arXiv:2106.09685, equation 3)
    dB = s dyᵀ (x Aᵀ)      dA = s (dy B)ᵀ x      dx = dy W + s (dy B) A      (the chain rule on the line above)
    W' = W + s B A                                       (ibid., section 4.1, "no additional inference latency")

The bounds follow the same lines: every place where an implementation stores an intermediate result is one rounding
(``Arithmetic``), and ``Numerics`` says which places there are. Nothing here runs torch: the oracle is no relative of
what it judges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lora_ref.geometry import Array, Fused, Geometry, Linear
from lora_ref.rounding import PRECISION_BITS, Arithmetic, Bounded, exact
from lora_ref.spec import LoraSpec


@dataclass(frozen=True)
class Numerics:
    """Where an implementation rounds: declared by it, and the only freedom that it has.

    accumulate: dtype in which sums of products are accumulated.
    order: "factored" computes (x Aᵀ) Bᵀ; "weight" first stores B·A, then multiplies x with it. "cheapest" is factored
        too, and may add the base's product to the delta and the bias; but where W, A and B are in float32 or wider it
        may as well multiply x and dy with W + s·B·A, formed first and rounded to that dtype, and take dA and dB from
        dyᵀ x.
    scale: s multiplies the finished "delta", or the "hidden" x Aᵀ before B.
    """

    accumulate: str = "float32"
    order: Literal["factored", "weight", "cheapest"] = "factored"
    scale: Literal["delta", "hidden"] = "delta"


@dataclass(frozen=True)
class Gradients:
    """What backpropagation of dy must give; ``x`` is None where the input is no real number, ``m`` without DoRA."""

    x: Bounded | None
    a: Bounded
    b: Bounded
    m: Bounded | None = None


class Oracle:
    """The expected results of one adapter on one layer.

    Args:
        geometry: how the layer reads its arrays; gives all shapes.
        spec: r, alpha and the scaling law; ``factor`` multiplies s (a runtime scale).
        w, bias, a, b: arrays of any dtype, in the geometry's shapes; bias (out,) or None.
        base_dtype, adapter_dtype: storage dtypes of W and of A, B.
    """

    def __init__(
        self,
        geometry: Geometry,
        spec: LoraSpec,
        w: ArrayLike,
        bias: ArrayLike | None,
        a: ArrayLike,
        b: ArrayLike,
        *,
        base_dtype: str = "float64",
        adapter_dtype: str = "float64",
        numerics: Numerics | None = None,
        factor: float = 1.0,
    ) -> None:
        self.geometry = geometry
        self.numerics = numerics or Numerics()
        self.scaling = spec.scaling * factor
        self.s = _held_in_float32(self.scaling)
        self.base = Arithmetic(base_dtype, self.numerics.accumulate)
        self.adapter = Arithmetic(adapter_dtype, self.numerics.accumulate)
        self.wide = Arithmetic("float32", self.numerics.accumulate)
        self.sums = Arithmetic(self.numerics.accumulate, self.numerics.accumulate)  # of a product that is not stored
        self.narrow = min(self.base, self.adapter, key=lambda a: PRECISION_BITS[a.storage])
        self.w = exact(geometry.weight_matrix(_float64(w)))  # (N, K)
        self.bias = None if bias is None else exact(_float64(bias))  # (N,)
        self.a = exact(geometry.a_matrix(_float64(a)))  # (R, K)
        self.b = exact(geometry.b_matrix(_float64(b)))  # (N, R)

    def delta_weight(self, *, narrow: bool = False) -> Bounded:
        """s·B·A in the shape of W; ``narrow`` allows it to be rounded to the narrowest dtype on the way."""
        return self._as_weight(self._delta_matrix(narrow=narrow))

    def merged_weight(self, *, narrow: bool = False) -> Bounded:
        """W + s·B·A, rounded once to W's dtype; ``narrow`` as above."""
        return self._as_weight(self._merged_matrix(narrow=narrow))

    def base_forward(self, x: ArrayLike) -> Bounded:
        """x Wᵀ + bias, without the adapter."""
        x = _float64(x)
        return self._as_output(self._base_rows(x), x.shape)

    def delta(self, x: ArrayLike, mask: Array | None = None) -> Bounded:
        """s (x Aᵀ) Bᵀ in the shape of y."""
        x = _float64(x)
        return self._as_output(self._delta_rows(x, mask), x.shape)

    def forward(self, x: ArrayLike, mask: Array | None = None) -> Bounded:
        """y; ``mask`` (shape of x) is what dropout multiplied the input of A with: 0 or 1/(1-p)."""
        x = _float64(x)
        # a fused product adds the delta to the base's output term by term
        base = self.base.carried(self._base_rows(x), self.a.value.shape[0])
        y = self.base.round(base + self._delta_rows(x, mask))
        if self._free:
            product = self.sums.dot(exact(self.geometry.rows(x)), self.w.T)
            y = y.either(self._added_to(self._delta_rows(x, mask), product, self.w.value.shape[1], self.bias))
        if mask is None and self._forms_weight:
            y = y.either(self._base_rows(x, self._formed_weight()))
        return self._as_output(y, x.shape)

    def merged_forward(self, x: ArrayLike, *, narrow: bool = False) -> Bounded:
        """y of the merged layer: one product with the rounded W'."""
        x = _float64(x)
        return self._as_output(self._base_rows(x, self._merged_matrix(narrow=narrow)), x.shape)

    def gradients(self, x: ArrayLike, dy: ArrayLike, mask: Array | None = None) -> Gradients:
        """dx, dA and dB of the scalar sum(y * dy)."""
        x, d_y = _float64(x), exact(self.geometry.y_rows(_float64(dy)))  # (M, N)
        dx_delta, da, db = self._branch_gradients(x, d_y, mask)
        if not self.geometry.differentiable:
            return Gradients(None, da, db)
        dx_base = self._base_gradient(x, d_y)
        dx_base = self.base.carried(dx_base, self.a.value.shape[0])
        dx_delta = self.base.round(dx_delta)
        dx = self.base.round(dx_base + dx_delta)
        if self._free:
            product = self.sums.dot(d_y, self.w, fold=partial(self.geometry.rows_array, x_shape=x.shape))
            dx = dx.either(self._added_to(dx_delta, product, self.w.value.shape[0]))
        if mask is None and self._forms_weight:
            dx = dx.either(self._base_gradient(x, d_y, self._formed_weight()))
            d_weight = self._weight_gradient(self._adapter_rows(x, None), d_y)
            da, db = (known.either(v) for known, v in zip((da, db), self._from_weight(d_weight, 1), strict=True))
        return Gradients(dx, da, db)

    @property
    def _free(self) -> bool:
        """Whether the products of this layer may be formed in any order."""
        return self.numerics.order == "cheapest" and isinstance(self.geometry, Linear | Fused)

    @property
    def _forms_weight(self) -> bool:
        return self._free and {self.base.storage, self.adapter.storage} <= {"float32", "float64"}

    def _added_to(self, delta: Bounded, product: Bounded, terms: int, bias: Bounded | None = None) -> Bounded:
        """The sum that starts with the delta, or with bias and delta, to which the base's terms are added."""
        if bias is not None:
            delta = self.base.round(delta + self.base.carried(bias, self.a.value.shape[0]))
        return self.base.round(self.base.carried(delta, terms) + product)

    def _formed_weight(self) -> Bounded:
        """W + s·B·A (N, K) as one product that starts with W."""
        return self.base.round(self.base.carried(self.w, self.a.value.shape[0]) + self._delta_matrix(narrow=False))

    def _base_gradient(self, x: Array, d_y: Bounded, w: Bounded | None = None) -> Bounded:
        """The base path's share of dx."""
        dx = self.base.dot(d_y, w or self.w, fold=partial(self.geometry.rows_array, x_shape=x.shape))
        for _ in range(self.geometry.pad_dims):
            dx = self.base.round(dx)  # padding adds its borders back, stored
        return dx

    def _branch_gradients(self, x: Array, d_y: Bounded, mask: Array | None) -> tuple[Bounded, Bounded, Bounded]:
        """The adapter's share of dx, then dA and dB, for the gradient d_y (M, N) of what the adapter adds."""
        rows = self._adapter_rows(x, mask)  # (M, K)
        a_array, b_array = self.geometry.a_array, self.geometry.b_array
        dot, rounded, s = self.adapter.dot, self.adapter.round, self.s
        parts = max(1, len(x)) if self.geometry.per_sample else 1
        if self.numerics.order == "weight":
            da, db = self._from_weight(self._weight_gradient(rows, d_y), parts)
            d_rows, right = rounded(d_y * s), dot(self.b, self.a)  # (M, N), (N, K)
        elif self.numerics.scale == "hidden":
            db = dot(d_y.T, rounded(self._hidden(rows) * s), fold=b_array, parts=parts)
            d_rows, right = rounded(dot(d_y, self.b) * s), self.a  # (M, R), (R, K)
            da = dot(d_rows.T, rows, fold=a_array, parts=parts)
        else:
            d_delta = rounded(d_y * s)  # (M, N)
            db = dot(d_delta.T, self._hidden(rows), fold=b_array, parts=parts)
            d_rows, right = dot(d_delta, self.b), self.a  # (M, R), (R, K)
            da = dot(d_rows.T, rows, fold=a_array, parts=parts)
        for _ in range(self.geometry.factor_copies > 1):
            da = rounded(da)  # the copies of A that grouped convolution makes each store a gradient of their own
        if not self.geometry.differentiable:
            return exact(0.0), da, db
        dx = dot(d_rows, right, fold=partial(self.geometry.rows_array, x_shape=x.shape))
        for _ in range(self.geometry.pad_dims):
            dx = rounded(dx)
        return (dx if mask is None else rounded(dx.times(mask))), da, db

    def _weight_gradient(self, rows: Bounded, d_y: Bounded) -> Bounded:
        return self.adapter.dot(self.adapter.round(d_y * self.s).T, rows)  # (N, K)

    def _from_weight(self, d_weight: Bounded, parts: int) -> tuple[Bounded, Bounded]:
        """dA and dB from the gradient of a delta in W's shape."""
        da = self.adapter.dot(self.b.T, d_weight, fold=self.geometry.a_array, parts=parts)
        return da, self.adapter.dot(d_weight, self.a.T, fold=self.geometry.b_array, parts=parts)

    def _adapter_rows(self, x: Array, mask: Array | None) -> Bounded:
        """What A sees: (M, K)."""
        if mask is None:
            return exact(self.geometry.rows(x))
        return self.adapter.round(exact(self.geometry.rows(x * mask)))

    def _hidden(self, rows: Bounded) -> Bounded:
        return self.adapter.dot(rows, self.a.T)  # (M, R)

    def _delta_rows(self, x: Array, mask: Array | None) -> Bounded:
        rows, s = self._adapter_rows(x, mask), self.s  # (M, K)
        dot, rounded = self.adapter.dot, self.adapter.round
        if self.numerics.order == "weight":
            return rounded(dot(rows, dot(self.b, self.a).T) * s)  # (M, N)
        if self.numerics.scale == "hidden":
            return dot(rounded(self._hidden(rows) * s), self.b.T)  # (M, N)
        return rounded(dot(self._hidden(rows), self.b.T) * s)  # (M, N)

    def _base_rows(self, x: Array, w: Bounded | None = None) -> Bounded:
        product = self.base.dot(exact(self.geometry.rows(x)), (w or self.w).T)  # (M, N)
        if self.bias is None:
            return product
        # some products start with the bias; where x is not contiguous, torch adds it in a step of its own instead
        return self.base.round(product + self.base.carried(self.bias, self.w.value.shape[1]))

    def _delta_matrix(self, *, narrow: bool) -> Bounded:
        arithmetic = self.narrow if narrow else self.wide
        return arithmetic.round(arithmetic.dot(self.b, self.a) * self.s)  # (N, K)

    def _merged_matrix(self, *, narrow: bool) -> Bounded:
        return self.base.round(self.w + self._delta_matrix(narrow=narrow))  # (N, K)

    def _as_output(self, rows: Bounded, x_shape: tuple[int, ...]) -> Bounded:
        return _moved(partial(self.geometry.y_array, x_shape=x_shape), rows)

    def _as_weight(self, matrix: Bounded) -> Bounded:
        return _moved(self.geometry.weight_array, matrix)


def _float64(array: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(array).astype(np.float64)


def _moved(move: Callable[[Array], Array], x: Bounded) -> Bounded:
    return Bounded(move(x.value), move(x.bound))


def _held_in_float32(value: float) -> Bounded:
    """A scalar that is multiplied with float32 values becomes one itself."""
    return Bounded(np.asarray(value), np.asarray(abs(value - float(np.float32(value)))))
