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
from conformance.quantiser import dequantise, quantise
from lora_ref.convolution import Conv, PaddingMode
from lora_ref.dora import DoraOracle
from lora_ref.experts import Experts
from lora_ref.geometry import Embedding, Fused, Geometry, Linear
from lora_ref.oracle import Numerics, Oracle
from lora_ref.residual import ResidualOracle
from lora_ref.rounding import PRECISION_BITS
from lora_ref.spec import Init, LoraSpec

Kind = Literal["linear", "transposed", "embedding", "conv", "fused", "experts"]
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
    init: Init = "default"
    dora: bool = False
    zero_row: bool = False  # the first output's row is zero in W and in B
    bits: int = 0  # of a quantised base
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
    experts: int = 0  # experts
    index: tuple[int, ...] = ()  # the expert of each row of x
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

    def residual_oracle(self, a0: Array, b0: Array, a: Array, b: Array, manifest: Manifest) -> ResidualOracle:
        """What an adapter gives that started from the weight, as ``a0`` and ``b0``."""
        dtypes = {"base_dtype": self.dtype, "adapter_dtype": self.adapter}
        layer = (self.geometry, self.spec, self.arrays.w, self.arrays.bias, a, b)
        return ResidualOracle(*layer, a0=a0, b0=b0, **dtypes, numerics=manifest.numerics)

    @property
    def adapter(self) -> str:
        return self.adapter_dtype or self.dtype

    @cached_property
    def spec(self) -> LoraSpec:
        return LoraSpec(self.r, self.alpha, self.rslora, self.dropout, dora=self.dora, init=self.init)

    @cached_property
    def geometry(self) -> Geometry:
        if self.kind == "embedding":
            return Embedding(self.in_features, self.out_features, self.padding_idx)
        if self.kind == "fused":
            return Fused(self.in_features, self.parts, self.enabled)
        if self.kind == "experts":
            return Experts(self.in_features, self.out_features, self.experts, self.index)
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
        if self.padding_idx is not None and x.size > 1:
            x.flat[0] = self.padding_idx  # a batch that never meets the padding says nothing about it
        a, b = values(g.a_shape(r), self.adapter), values(g.b_shape(r), self.adapter)
        w = np.zeros_like(w) if self.base_zero else w
        if self.zero_row:
            g.weight_matrix(w)[0] = b[0] = 0
        dy = values(g.y_shape(x_shape), self.dtype)
        return Arrays(
            w=_frozen(w),
            bias=None if bias is None else _frozen(bias),
            a=_frozen(a),
            b=_frozen(b),
            x=arrange(x, self.x_layout),
            dy=arrange(dy, self.dy_layout),
            m=_frozen(self._magnitude(rng, w, a, b)) if self.dora else None,
        )

    def _magnitude(self, rng: np.random.Generator, w: Array, a: Array, b: Array) -> Array:
        """m (out,): the norm that it starts from, moved as far as training may; of either sign."""
        norm = DoraOracle(self.geometry, self.spec, w, None, a, b, m=None).norm.value[0]
        moved = rng.uniform(0.5, 1.5, norm.shape) * rng.choice([-1, 1], norm.shape, p=[0.2, 0.8])
        m: Array = (moved * np.where(norm > 0, norm, 1)).astype(dtype_of(self.adapter))
        return m

    def weights(self, *, factors: bool = True) -> Weights:
        """Arrays for a backend; without ``factors`` it makes its own A and B."""
        at = self.arrays
        a, b, m = (at.a, at.b, at.m) if factors else (None, None, None)
        return Weights(self.geometry, at.w, at.bias, a, b, self.adapter, self.seed, m, self.bits)

    @cached_property
    def base_weight(self) -> Array:
        """What the base computes with: W, or what its quantisation left of it."""
        if not self.bits:
            return self.arrays.w
        return _frozen(dequantise(quantise(self.arrays.w, self.bits)).astype(dtype_of(self.dtype)))

    def oracle(self, manifest: Manifest, *, factor: float = 1.0) -> Oracle:
        """What the case must give, with the bounds that follow from where the backend says it rounds."""
        return self.oracle_of(self.arrays.a, self.arrays.b, manifest, factor=factor, m=self.arrays.m)

    def oracle_of(
        self,
        a: Array,
        b: Array,
        manifest: Manifest,
        *,
        factor: float = 1.0,
        spec: LoraSpec | None = None,
        m: Array | None = None,
    ) -> Oracle:
        """The same for other factors: the base of this case under another adapter; DoRA without m: a fresh one."""
        fused = self.kind == "fused" and manifest.fused_numerics
        dtypes = {"base_dtype": self.dtype, "adapter_dtype": self.adapter}
        numerics: Numerics = fused or manifest.numerics
        spec, w, bias = spec or self.spec, self.base_weight, self.arrays.bias
        layer: Any = (self.geometry, spec, w, bias, a, b)
        rounding: Any = {**dtypes, "numerics": numerics, "factor": factor}
        if spec.dora:
            return DoraOracle(*layer, m=m, dora_dropout=manifest.dora_dropout, **rounding)
        return Oracle(*layer, **rounding)


@dataclass(frozen=True)
class Arrays:
    """The read-only arrays of a case; ``x`` and ``dy`` in the layout that it asks for."""

    w: Array
    bias: Array | None
    a: Array
    b: Array
    x: Array
    dy: Array
    m: Array | None = None

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
            # the mask multiplies the delta of dx as well, and 1/(1-p) with it
            kept = np.full(x.shape, 1.0 / (1.0 - case.dropout)) if case.dropout else None
            dx = oracle.gradients(x, dy, kept).x
            assert dx is not None
            sums.append(dx.value)
        top = max((float(s.max()) for s in sums if s.size), default=0.0)
        return top / min(1.0, case.spec.scaling)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def exact_alpha(r: int, log2_scaling: int, *, rslora: bool) -> float:
    """The alpha that makes the scaling a power of two; for rsLoRA r must be a square."""
    return (math.isqrt(r) if rslora else r) * 2.0**log2_scaling
