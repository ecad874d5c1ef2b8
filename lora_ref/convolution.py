"""Convolutions as matrix products: each output position is a row of the input values that its kernel reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lora_ref.geometry import Array, Geometry, Shape

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_NUMPY_PAD = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True)
class Conv(Geometry):
    """Convolution in one, two or three dimensions; x (batch, in, *space), W (out, in/groups, *kernel).

    ``factors`` names how a grouped convolution is adapted (with one group both are the same):
    "flattened": A (r, in/groups, *kernel), B (out, r): W flattened to (out, in/groups·kernel) gets s·B·A, which is
    LoRA's own definition and merges; "block": A (r, in, *kernel) sees all channels and B (out, r/groups) is grouped,
    which is PEFT's layer and has no merged form.
    """

    per_sample = True
    in_channels: int
    out_features: int
    size: Shape
    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    factors: Literal["flattened", "block"] = "flattened"

    @property
    def pad_dims(self) -> int:  # type: ignore[override]
        return 0 if self.padding_mode == "zeros" else len(self.kernel)

    @property
    def factor_copies(self) -> int:  # type: ignore[override]
        return self.groups if self.factors == "flattened" else 1

    @property
    def weight_shape(self) -> Shape:
        return (self.out_features, self.in_channels // self.groups, *self.kernel)

    def a_shape(self, r: int) -> Shape:
        width = self.in_channels // (self.groups if self.factors == "flattened" else 1)
        return (r, width, *self.kernel)

    def b_shape(self, r: int) -> Shape:
        width = r // (self.groups if self.factors == "block" else 1)
        return (self.out_features, width, *(1 for _ in self.kernel))

    def x_shape(self, lead: Shape) -> Shape:
        return (math.prod(lead), self.in_channels, *self.size)

    @property
    def out_size(self) -> Shape:
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        )

    def y_shape(self, x_shape: Shape) -> Shape:
        return (x_shape[0], self.out_features, *self.out_size)

    def _patches(self) -> NDArray[np.int64]:
        """(positions, in, kernel): which element of a flattened sample each tap reads; -1 reads a padded zero."""
        index = np.arange(self.in_channels * math.prod(self.size)).reshape(self.in_channels, *self.size)
        width = [(0, 0), *((p, p) for p in self.padding)]
        if self.padding_mode == "zeros":
            index = np.pad(index, width, constant_values=-1)
        else:
            index = np.pad(index, width, mode=_NUMPY_PAD[self.padding_mode])  # type: ignore[call-overload]
        grids = []
        for n, d, k, s in zip(self.out_size, self.dilation, self.kernel, self.stride, strict=True):
            grids.append(np.arange(n)[:, None] * s + np.arange(k)[None, :] * d)  # (positions, taps) of one axis
        dims = len(grids)
        taps = np.ix_(*([np.arange(self.in_channels)] + [g.reshape(-1) for g in grids]))
        picked = index[taps].reshape(self.in_channels, *(n for g in grids for n in g.shape))
        order = [1 + 2 * i for i in range(dims)] + [0] + [2 + 2 * i for i in range(dims)]
        patches: NDArray[np.int64] = picked.transpose(order)
        return patches.reshape(math.prod(self.out_size), self.in_channels, -1)

    def rows(self, x: Array) -> Array:
        flat = np.concatenate([x.reshape(len(x), math.prod(x.shape[1:])), np.zeros((len(x), 1))], axis=1)
        patches = self._patches()
        return flat[:, patches].reshape(len(x) * len(patches), math.prod(patches.shape[1:]))

    def rows_array(self, d_rows: Array, x_shape: Shape) -> Array:
        patches = self._patches().reshape(-1)
        flat = np.zeros((x_shape[0], math.prod(x_shape[1:]) + 1))
        np.add.at(flat.T, patches, d_rows.reshape(x_shape[0], len(patches)).T)
        return flat[:, :-1].reshape(x_shape)

    def y_rows(self, y: Array) -> Array:
        return np.moveaxis(y, 1, -1).reshape(-1, self.out_features)

    def y_array(self, rows: Array, x_shape: Shape) -> Array:
        y = rows.reshape(x_shape[0], *self.out_size, self.out_features)
        return np.moveaxis(y, -1, 1)

    def _group_blocks(self, rows: int) -> list[tuple[slice, slice]]:
        """Per group: its share of ``rows`` rows and its columns of K."""
        g, taps = self.groups, self.in_channels * math.prod(self.kernel)
        n, k = rows // g, taps // g
        return [(slice(i * n, i * n + n), slice(i * k, i * k + k)) for i in range(g)]

    def weight_matrix(self, w: Array) -> Array:
        matrix = np.zeros((self.out_features, self.in_channels * math.prod(self.kernel)))
        for rows, columns in self._group_blocks(self.out_features):
            matrix[rows, columns] = w[rows].reshape(rows.stop - rows.start, -1)
        return matrix

    def weight_array(self, matrix: Array) -> Array:
        blocks = [matrix[rows, columns] for rows, columns in self._group_blocks(self.out_features)]
        return np.concatenate(blocks).reshape(self.weight_shape)

    def a_matrix(self, a: Array) -> Array:
        flat = a.reshape(len(a), -1)
        if self.factors == "block":
            return flat
        matrix = np.zeros((len(a) * self.groups, self.in_channels * math.prod(self.kernel)))
        for rows, columns in self._group_blocks(len(matrix)):
            matrix[rows, columns] = flat  # every group has the same A over its own channels
        return matrix

    def a_array(self, d_matrix: Array) -> Array:
        if self.factors == "block":
            return d_matrix.reshape(self.a_shape(len(d_matrix)))
        r = len(d_matrix) // self.groups
        total = sum(d_matrix[rows, columns] for rows, columns in self._group_blocks(len(d_matrix)))
        return np.asarray(total).reshape(self.a_shape(r))

    def _b_blocks(self, columns: int) -> list[tuple[slice, slice]]:
        n, k = self.out_features // self.groups, columns // self.groups
        return [(slice(i * n, i * n + n), slice(i * k, i * k + k)) for i in range(self.groups)]

    def b_matrix(self, b: Array) -> Array:
        flat = b.reshape(len(b), -1)
        matrix = np.zeros((len(b), flat.shape[1] * self.groups))
        for rows, columns in self._b_blocks(matrix.shape[1]):
            matrix[rows, columns] = flat[rows]
        return matrix

    def b_array(self, d_matrix: Array) -> Array:
        blocks = [d_matrix[rows, columns] for rows, columns in self._b_blocks(d_matrix.shape[1])]
        flat = np.concatenate(blocks)
        return flat.reshape(*flat.shape, *(1 for _ in self.kernel))
