"""Every adapted layer as one matrix product.

Linear, embedding, convolution and fused projections are all ``rows(x) @ W.T`` for a suitable reading of their
input and weight. A geometry says how to read arrays as matrices and how to write results back, so that the oracle
needs one formula for all of them. Both directions only move numbers: they add nothing and round nothing.

Letters: M rows (tokens, or output positions), K inputs of a row, N outputs of a row, R columns of B.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]


class Geometry(ABC):
    """How one kind of layer reads x, W, A and B as matrices; ``*_array`` is the adjoint of ``*_matrix``."""

    out_features: int  # length of the bias, and of y along its feature axis
    differentiable = True  # x is a real array and has a gradient
    pad_dims = 0  # axes along which the input is padded with its own values
    per_sample = False  # the weight's gradient may be summed sample by sample
    factor_copies = 1  # how many times A is used side by side

    @property
    @abstractmethod
    def weight_shape(self) -> Shape: ...

    @abstractmethod
    def a_shape(self, r: int) -> Shape: ...

    @abstractmethod
    def b_shape(self, r: int) -> Shape: ...

    @abstractmethod
    def x_shape(self, lead: Shape) -> Shape:
        """Shape of an input with the leading dimensions ``lead``."""

    def y_shape(self, x_shape: Shape) -> Shape:
        return (*x_shape[:-1], self.out_features)

    def rows(self, x: Array) -> Array:
        """x -> (M, K)."""
        return x.reshape(-1, x.shape[-1]) if x.shape[-1] else x.reshape(math.prod(x.shape[:-1]), 0)

    def rows_array(self, d_rows: Array, x_shape: Shape) -> Array:
        return d_rows.reshape(x_shape)

    def y_rows(self, y: Array) -> Array:
        """y -> (M, N)."""
        return y.reshape(math.prod(y.shape[:-1]), self.out_features)

    def y_array(self, rows: Array, x_shape: Shape) -> Array:
        return rows.reshape(self.y_shape(x_shape))

    def weight_matrix(self, w: Array) -> Array:
        """W -> (N, K)."""
        return w

    def weight_array(self, matrix: Array) -> Array:
        return matrix

    def a_matrix(self, a: Array) -> Array:
        """A -> (R, K)."""
        return a

    def a_array(self, d_matrix: Array) -> Array:
        return d_matrix

    def b_matrix(self, b: Array) -> Array:
        """B -> (N, R)."""
        return b

    def b_array(self, d_matrix: Array) -> Array:
        return d_matrix


@dataclass(frozen=True)
class Linear(Geometry):
    """y = x Wᵀ + bias; W (out, in), or (in, out) when ``transposed`` as in GPT-2's Conv1D ("fan_in_fan_out")."""

    in_features: int
    out_features: int
    transposed: bool = False

    @property
    def weight_shape(self) -> Shape:
        shape = (self.out_features, self.in_features)
        return shape[::-1] if self.transposed else shape

    def a_shape(self, r: int) -> Shape:
        return (r, self.in_features)

    def b_shape(self, r: int) -> Shape:
        return (self.out_features, r)

    def x_shape(self, lead: Shape) -> Shape:
        return (*lead, self.in_features)

    def weight_matrix(self, w: Array) -> Array:
        return w.T if self.transposed else w

    def weight_array(self, matrix: Array) -> Array:
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True)
class Embedding(Geometry):
    """y = W[ids]; W (num, dim), A (r, num), B (dim, r): row i of the delta is s·B·A[:, i].

    The row of ``padding_idx`` is looked up like any other; its gradient is defined as zero, as torch does.
    """

    differentiable = False
    num_embeddings: int
    out_features: int
    padding_idx: int | None = None

    @property
    def weight_shape(self) -> Shape:
        return (self.num_embeddings, self.out_features)

    def a_shape(self, r: int) -> Shape:
        return (r, self.num_embeddings)

    def b_shape(self, r: int) -> Shape:
        return (self.out_features, r)

    def x_shape(self, lead: Shape) -> Shape:
        return lead

    def y_shape(self, x_shape: Shape) -> Shape:
        return (*x_shape, self.out_features)

    def rows(self, x: Array) -> Array:
        return np.eye(self.num_embeddings)[x.reshape(-1).astype(np.int64)]

    def weight_matrix(self, w: Array) -> Array:
        return w.T

    def weight_array(self, matrix: Array) -> Array:
        return matrix.T

    def a_array(self, d_matrix: Array) -> Array:
        if self.padding_idx is None:
            return d_matrix
        kept = np.arange(self.num_embeddings) != self.padding_idx
        return np.where(kept, d_matrix, 0.0)


@dataclass(frozen=True)
class Fused(Geometry):
    """Several projections stacked in one weight (QKV, gate and up), adapted part by part.

    ``parts`` are the rows of each, which differ in grouped-query attention; ``enabled`` says which carry an adapter.
    A (n·r, in) and B (enabled rows, r) stack the factors of the n enabled parts; the other rows get no delta.
    """

    in_features: int
    parts: tuple[int, ...]
    enabled: tuple[bool, ...]

    @property
    def out_features(self) -> int:  # type: ignore[override]
        return sum(self.parts)

    @property
    def weight_shape(self) -> Shape:
        return (self.out_features, self.in_features)

    def a_shape(self, r: int) -> Shape:
        return (r * sum(self.enabled), self.in_features)

    def b_shape(self, r: int) -> Shape:
        return (sum(n for n, on in zip(self.parts, self.enabled, strict=True) if on), r)

    def x_shape(self, lead: Shape) -> Shape:
        return (*lead, self.in_features)

    def b_matrix(self, b: Array) -> Array:
        r = b.shape[1]
        matrix = np.zeros((self.out_features, r * sum(self.enabled)))
        for rows, columns, source in self._blocks(r):
            matrix[rows, columns] = b[source]
        return matrix

    def b_array(self, d_matrix: Array) -> Array:
        r = d_matrix.shape[1] // sum(self.enabled)
        return np.concatenate([d_matrix[rows, columns] for rows, columns, _ in self._blocks(r)])

    def _blocks(self, r: int) -> list[tuple[slice, slice, slice]]:
        """Per enabled part: its rows in W, its columns among the stacked A, its rows in B."""
        blocks, row, source, nth = [], 0, 0, 0
        for n, on in zip(self.parts, self.enabled, strict=True):
            if on:
                blocks.append((slice(row, row + n), slice(nth * r, nth * r + r), slice(source, source + n)))
                source, nth = source + n, nth + 1
            row += n
        return blocks
