"""A case: a few small integers, flags and a seed, from which every array of a trial is derived.

Shapes and flags are drawn by Hypothesis, which shrinks them; values come from the seed, so they stay dense.

Two tiers. "exact": integer entries and a power-of-two scaling, sized so that every partial sum, whatever its order, is
representable in the dtype; a correct implementation then gives the oracle's bits. "bounded": Gaussian entries, judged
against a derived rounding-error bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from conformance.contract import Array, Manifest, Weights, dtype_of
from conformance.layout import arrange
from lora_ref.convolution import Conv, PaddingMode
from lora_ref.geometry import Embedding, Fused, Geometry, Linear
from lora_ref.oracle import Numerics, Oracle
from lora_ref.rounding import PRECISION_BITS
from lora_ref.spec import LoraSpec

Kind = Literal["linear", "transposed", "embedding", "conv", "fused"]
Tier = Literal["exact", "bounded"]
Layout = Literal["contiguous", "transposed", "strided", "expanded", "offset"]

# From dense and large to sparse and small: the first that keeps every partial sum exact is taken.
_LATTICES = [(8, 1.0), (4, 1.0), (2, 1.0), (1, 1.0), (1, 0.7), (1, 0.5), (1, 0.35), (1, 0.2), (1, 0.1), (1, 0.05)]


class InexactCaseError(Exception):
    """No lattice keeps this case exact in its dtype; a strategy must not draw it."""


@dataclass(frozen=True)
class Case:
    """One layer, its adapter and one batch. Defaults are the plainest choice; a failure prints what differs."""

    in_features: int
    out_features: int
    r: int
    alpha: float
    lead: tuple[int, ...] = (2,)
    kind: Kind = "linear"
    tier: Tier = "exact"
    dtype: str = "float32"
    adapter_dtype: str = ""  # empty: the dtype of the base
    bias: bool = False
    rslora: bool = False
    dropout: float = 0.0
    base_zero: bool = False  # W = 0, so that nothing hides the delta
    headroom: int = 0  # bits that the exact tier leaves free, for sums of deltas and for scales
    x_layout: Layout = "contiguous"
    dy_layout: Layout = "contiguous"
    size: tuple[int, ...] = ()  # conv: the input's space
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    factors: Literal["flattened", "block"] = "flattened"
    padding_idx: int | None = None  # embedding
    parts: tuple[int, ...] = ()  # fused
    enabled: tuple[bool, ...] = ()
    seed: int = 0

    @classmethod
    def from_fields(cls, given: Mapping[str, Any]) -> Case:
        """The case that ``to_json`` wrote.

        Raises:
            ValueError: a field that no case has, or one that is missing.
        """
        unknown = set(given) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a case has no field {', '.join(sorted(unknown))}")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"the case is incomplete: {error}") from None

    def described(self) -> dict[str, Any]:
        """The fields that differ from the plainest choice, and always the shapes and the seed."""
        always = {"in_features", "out_features", "r", "alpha", "tier", "dtype", "seed"}
        plain = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if k in always or v != plain[k]}

    def to_json(self) -> str:
        return json.dumps(self.described(), separators=(",", ":"))

    @property
    def adapter(self) -> str:
        return self.adapter_dtype or self.dtype

    @cached_property
    def spec(self) -> LoraSpec:
        return LoraSpec(r=self.r, alpha=self.alpha, rslora=self.rslora, dropout=self.dropout)

    @cached_property
    def geometry(self) -> Geometry:
        if self.kind == "embedding":
            return Embedding(self.in_features, self.out_features, self.padding_idx)
        if self.kind == "fused":
            return Fused(self.in_features, self.parts, self.enabled)
        if self.kind == "conv":
            window = (self.size, self.kernel, self.stride, self.padding, self.dilation)
            return Conv(self.in_features, self.out_features, *window, self.groups, self.padding_mode, self.factors)
        return Linear(self.in_features, self.out_features, transposed=self.kind == "transposed")

    @cached_property
    def arrays(self) -> Arrays:
        if self.tier == "bounded":
            return self._draw(None)
        for lattice in _LATTICES:
            arrays = self._draw(lattice)
            if arrays.largest_sum(self) <= 2 ** (PRECISION_BITS[self.narrowest] - self.headroom):
                return arrays
        raise InexactCaseError(self.to_json())

    def sibling(self, nth: int) -> Case:
        """The same shapes with other values: a second adapter, a second batch."""
        return replace(self, seed=(self.seed + nth) % 2**32)

    @property
    def narrowest(self) -> str:
        return min(self.dtype, self.adapter, key=lambda name: PRECISION_BITS[name])

    def _draw(self, lattice: tuple[int, float] | None) -> Arrays:
        rng = np.random.default_rng([self.seed, 0 if lattice is None else 1 + _LATTICES.index(lattice)])

        def values(shape: tuple[int, ...], dtype: str) -> Array:
            if lattice is None:
                return rng.standard_normal(shape).astype(dtype_of(dtype))
            top, density = lattice
            entries = rng.integers(1, top, endpoint=True, size=shape) * rng.choice([-1, 1], size=shape)
            return np.where(rng.random(shape) < density, entries, 0).astype(dtype_of(dtype))

        g, r = self.geometry, self.r
        x_shape = g.x_shape(self.lead)
        w = values(g.weight_shape, self.dtype)
        bias = values((g.out_features,), self.dtype) if self.bias else None
        x = values(x_shape, self.dtype) if g.differentiable else rng.integers(0, self.in_features, x_shape)
        return Arrays(
            w=_frozen(np.zeros_like(w) if self.base_zero else w),
            bias=None if bias is None else _frozen(bias),
            a=_frozen(values(g.a_shape(r), self.adapter)),
            b=_frozen(values(g.b_shape(r), self.adapter)),
            x=arrange(x, self.x_layout),
            dy=arrange(values(g.y_shape(x_shape), self.dtype), self.dy_layout),
        )

    def weights(self, *, factors: bool = True) -> Weights:
        """Arrays for a backend; without ``factors`` it makes its own A and B."""
        at = self.arrays
        a, b = (at.a, at.b) if factors else (None, None)
        return Weights(self.geometry, at.w, at.bias, a, b, self.adapter, self.seed)

    def oracle(self, manifest: Manifest, *, factor: float = 1.0) -> Oracle:
        """What the case must give, with the bounds that follow from where the backend says it rounds."""
        return self.oracle_of(self.arrays.a, self.arrays.b, manifest, factor=factor)

    def oracle_of(
        self, a: Array, b: Array, manifest: Manifest, *, factor: float = 1.0, spec: LoraSpec | None = None
    ) -> Oracle:
        """The same for other factors: the base of this case under another adapter."""
        fused = self.kind == "fused" and manifest.fused_numerics
        dtypes = {"base_dtype": self.dtype, "adapter_dtype": self.adapter}
        numerics: Numerics = fused or manifest.numerics
        w, bias = self.arrays.w, self.arrays.bias
        return Oracle(self.geometry, spec or self.spec, w, bias, a, b, **dtypes, numerics=numerics, factor=factor)


@dataclass(frozen=True)
class Arrays:
    """The read-only arrays of a case; ``x`` and ``dy`` in the layout that it asks for."""

    w: Array
    bias: Array | None
    a: Array
    b: Array
    x: Array
    dy: Array

    def largest_sum(self, case: Case) -> float:
        """Largest possible absolute partial sum of any product in the trial, in units of the lattice's grid."""
        sizes = (np.abs(v.astype(np.float64)) for v in (self.w, self.a, self.b, self.dy))
        w, a, b, dy = sizes
        bias = None if self.bias is None else np.abs(self.bias.astype(np.float64))
        x = np.abs(self.x.astype(np.float64)) / (1.0 - case.dropout)  # what inverted dropout keeps is scaled up
        oracle = Oracle(case.geometry, case.spec, w, bias, a, b)
        grads = oracle.gradients(x, dy)
        rows, d_rows = case.geometry.rows(x), case.geometry.y_rows(dy)
        sums = [
            oracle.forward(x).value,
            oracle.merged_weight().value,
            grads.a.value,
            grads.b.value,
            case.spec.scaling * (d_rows.T @ rows),  # the gradient of a weight-shaped delta
            rows @ case.geometry.a_matrix(a).T,
            d_rows @ case.geometry.b_matrix(b),
        ]
        if grads.x is not None:
            sums.append(grads.x.value)
        top = max((float(s.max()) for s in sums if s.size), default=0.0)
        return top / min(1.0, case.spec.scaling)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def exact_alpha(r: int, log2_scaling: int, *, rslora: bool) -> float:
    """The alpha that makes the scaling a power of two; for rsLoRA r must be a square."""
    return (math.isqrt(r) if rslora else r) * 2.0**log2_scaling
