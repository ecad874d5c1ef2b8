"""The closed form in plain numpy: proof that the contract needs no torch.

Products accumulate in float32 and each result is stored in the dtype of its operands, as hardware does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conformance.contract import Array, Backend, Feature, Grads, Manifest, Weights
from lora_ref.geometry import Linear
from lora_ref.spec import LoraSpec


class NumpyOperator:
    def vjp(self, spec: LoraSpec, weights: Weights, x: Array, dy: Array) -> Grads:
        assert isinstance(weights.geometry, Linear)
        assert weights.a is not None
        assert weights.b is not None
        w, bias, a, b = weights.w, weights.bias, weights.a, weights.b
        w = w.T if weights.geometry.transposed else w  # (out, in)
        low, base = a.dtype, w.dtype
        rows, d_rows = x.reshape(_count(x), w.shape[1]), dy.reshape(_count(dy), w.shape[0])  # (M, in), (M, out)
        hidden = _dot(rows, a.T, low)  # (M, r)
        delta = _scaled(_dot(hidden, b.T, low), spec.scaling)  # (M, out)
        y = _sum(_dot(rows, w.T, base, bias), delta, base)  # (M, out)
        d_delta = _scaled(d_rows.astype(low), spec.scaling)  # (M, out)
        d_hidden = _dot(d_delta, b, low)  # (M, r)
        dx = _sum(_dot(d_rows, w, base), _dot(d_hidden, a, low).astype(base), base)  # (M, in)
        da, db = _dot(d_hidden.T, rows, low), _dot(d_delta.T, hidden, low)  # (r, in), (out, r)
        return Grads(y.reshape(dy.shape), dx.reshape(x.shape), da, db)


def _count(x: Array) -> int:
    return int(np.prod(x.shape[:-1], dtype=np.int64))


def _dot(p: Array, q: Array, dtype: Any, plus: Array | None = None) -> Array:
    product = p.astype(np.float32) @ q.astype(np.float32)
    return (product if plus is None else product + plus.astype(np.float32)).astype(dtype)


def _scaled(x: Array, scaling: float) -> Array:
    return (x.astype(np.float32) * np.float32(scaling)).astype(x.dtype)


def _sum(x: Array, y: Array, dtype: Any) -> Array:
    return (x.astype(np.float32) + y.astype(np.float32)).astype(dtype)


backend = Backend(
    Manifest(
        name="numpy",
        version=np.__version__,
        dtypes=("float32", "bfloat16", "float16"),
        features=frozenset({Feature.BIAS, Feature.TRANSPOSED, Feature.RSLORA, Feature.MIXED_DTYPE}),
    ),
    operator=NumpyOperator(),
)
