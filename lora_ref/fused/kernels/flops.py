"""FLOPs of the operators by torch's convention: products count, a multiply and an add are two, and nothing else does.

Routed operators count as if every row had an adapter of the largest rank: which rows have one is not in the shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from lora_ref.fused.kernels import operators, routed_operators  # noqa: F401 - define the operators

_ops = torch.ops.lora_ref
_Shape = tuple[int, ...]


@register_flop_formula([_ops.shrink, _ops.routed_shrink])
def _shrink(x: _Shape, a: _Shape, *_: Any, **__: Any) -> int:
    """x (M, in), a (..., r, in)."""
    return 2 * x[0] * x[1] * a[-2]


@register_flop_formula(_ops.linear_expand)
def _linear_expand(x: _Shape, w: _Shape, bias: Any, h: _Shape, b: _Shape, *_: Any, **__: Any) -> int:  # noqa: ARG001
    """x (M, in), w (out, in), h (M, r), b (out, r)."""
    return 2 * x[0] * w[0] * (w[1] + h[1])


@register_flop_formula([_ops.factor_gradient, _ops.routed_gradient])
def _gradient(t: _Shape, v: _Shape, *_: Any, **__: Any) -> int:
    """t (M, r), v (M, C)."""
    return 2 * t[0] * t[1] * v[1]


@register_flop_formula(_ops.routed_expand)
def _routed_expand(h: _Shape, b: _Shape, *_: Any, **__: Any) -> int:
    """h (M, r), b (adapters, out, r)."""
    return 2 * h[0] * h[1] * b[1]


@register_flop_formula(_ops.lora_linear)
def _lora_linear(x: _Shape, w: _Shape, bias: Any, a: _Shape, b: _Shape, *_: Any, **__: Any) -> int:  # noqa: ARG001
    """x (M, in), w (out, in), a (r, in), b (out, r)."""
    return 2 * x[0] * (w[0] * w[1] + a[0] * (a[1] + b[0]))


@register_flop_formula(_ops.routed_lora)
def _routed_lora(x: _Shape, base: _Shape, a: _Shape, b: _Shape, *_: Any, **__: Any) -> int:  # noqa: ARG001
    """x (M, in), a (adapters, r, in), b (adapters, out, r)."""
    return 2 * x[0] * a[1] * (a[2] + b[1])
