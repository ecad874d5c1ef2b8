"""A stack of expert linears as one matrix product: each row of x lies in the columns of its own expert."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lora_ref.geometry import Array, Geometry, Shape


@dataclass(frozen=True)
class Experts(Geometry):
    """y_i = x_i W_eᵀ + s (x_i A_eᵀ) B_eᵀ with e = ``index[i]``, the expert of row i of x.

    x (..., in), its leading dimensions flattened; W (E, out, in), A (E, r, in), B (E, out, r); no bias. Side by side
    the W_e are one matrix (out, E·in), which multiplies rows that are zero outside the columns of their expert. An
    expert may have no rows at all.
    """

    in_features: int
    out_features: int
    experts: int
    index: tuple[int, ...]

    @property
    def weight_shape(self) -> Shape:
        return (self.experts, self.out_features, self.in_features)

    def a_shape(self, r: int) -> Shape:
        return (self.experts, r, self.in_features)

    def b_shape(self, r: int) -> Shape:
        return (self.experts, self.out_features, r)

    def x_shape(self, lead: Shape) -> Shape:
        return (*lead, self.in_features)

    def rows(self, x: Array) -> Array:
        m = math.prod(x.shape[:-1])
        spread = np.zeros((m, self.experts, self.in_features))
        spread[np.arange(m), self._experts_of(m)] = x.reshape(m, self.in_features)
        return spread.reshape(m, self.experts * self.in_features)

    def rows_array(self, d_rows: Array, x_shape: Shape) -> Array:
        m = len(d_rows)
        return d_rows.reshape(m, self.experts, self.in_features)[np.arange(m), self._experts_of(m)].reshape(x_shape)

    def weight_matrix(self, w: Array) -> Array:
        return _side_by_side(w)

    def weight_array(self, matrix: Array) -> Array:
        return _one_by_one(matrix, self.experts)

    def a_matrix(self, a: Array) -> Array:
        e, r, k = a.shape
        blocks = np.zeros((e, r, e, k))
        blocks[np.arange(e), :, np.arange(e)] = a
        return blocks.reshape(e * r, e * k)

    def a_array(self, d_matrix: Array) -> Array:
        e = np.arange(self.experts)
        return d_matrix.reshape(self.experts, -1, self.experts, self.in_features)[e, :, e]

    def b_matrix(self, b: Array) -> Array:
        return _side_by_side(b)

    def b_array(self, d_matrix: Array) -> Array:
        return _one_by_one(d_matrix, self.experts)

    def _experts_of(self, rows: int) -> list[int]:
        if rows != len(self.index):
            raise ValueError(f"{rows} rows need as many indices of experts, got {len(self.index)}")
        return list(self.index)


def _side_by_side(stack: Array) -> Array:
    """(E, n, k) -> (n, E·k)."""
    e, n, k = stack.shape
    return stack.transpose(1, 0, 2).reshape(n, e * k)


def _one_by_one(matrix: Array, experts: int) -> Array:
    """(n, E·k) -> (E, n, k)."""
    return matrix.reshape(len(matrix), experts, -1).transpose(1, 0, 2)
