"""Residual initialisations in closed form: A and B start from the weight, which keeps the rest.

    y  = x (W - s B₀ A₀)ᵀ + bias + s (x Aᵀ) Bᵀ      W' = W - s B₀ A₀ + s B A      dA, dB: as without

PiSSA (Meng et al., 2024, arXiv:2404.02948, equations 2 to 4): s B₀ A₀ is the best approximation of W of rank r.
OLoRA (Büyükakyüz, 2024, arXiv:2406.01775, section 3): B₀ A₀ is Q R cut to r columns and rows, where W = Q R.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lora_ref.geometry import Array
from lora_ref.oracle import Gradients, Oracle
from lora_ref.rounding import UNIT_ROUNDOFF, Bounded, exact


class ResidualOracle(Oracle):
    """The expected results of an adapter that started as ``a0``, ``b0``; other arguments as in ``Oracle``.

    Every bound covers the two ways of computing: with a base that was set to W - s·B₀·A₀, rounded once; and with W
    beside a branch s·(B·A - B₀·A₀), whose two products may be one, of [A; A₀] and [B, -B₀].
    """

    def __init__(self, *layer: Any, a0: ArrayLike, b0: ArrayLike, **numerics: Any) -> None:
        super().__init__(*layer, **numerics)
        geometry, spec, w, bias, *_ = layer
        self.first = Oracle(geometry, spec, w, bias, a0, b0, **numerics)
        a, b = layer[4:]
        self.stacked = Oracle(
            geometry, spec, w, bias, np.concatenate([a, a0]), np.concatenate([b, -np.asarray(b0)], axis=1), **numerics
        )
        self.w = self.base.round(self.w - self.first._delta_matrix(narrow=False))  # noqa: SLF001 (of its own kind)

    def forward(self, x: ArrayLike, mask: Array | None = None) -> Bounded:
        x64 = np.asarray(x).astype(np.float64)
        change = self._delta_rows(x64, mask) - self.first._delta_rows(x64, mask)  # noqa: SLF001
        beside = self._as_output(self.adapter.round(change), x64.shape)
        y = super().forward(x, mask).either(self.base.round(self.first.base_forward(x) + beside))
        return y.either(self.stacked.forward(x, mask))

    def gradients(self, x: ArrayLike, dy: ArrayLike, mask: Array | None = None) -> Gradients:
        whole, x64 = super().gradients(x, dy, mask), np.asarray(x).astype(np.float64)
        d_y = exact(self.geometry.y_rows(np.asarray(dy).astype(np.float64)))
        shares = [
            self.first._base_gradient(x64, d_y),  # noqa: SLF001
            self.first._branch_gradients(x64, d_y, mask)[0],  # noqa: SLF001
            self._branch_gradients(x64, d_y, mask)[0],
        ]
        # the three shares of dx are added up in any order: no partial sum is larger than all of them together
        together = Bounded(np.sum([s.magnitude for s in shares], axis=0), np.sum([s.bound for s in shares], axis=0))
        beside = self.base.round(self.base.round(together)).bound
        stacked = self.stacked.gradients(x, dy, mask)
        assert whole.x is not None
        assert stacked.x is not None
        dx = whole.x.either(Bounded(whole.x.value, beside)).either(stacked.x)
        return Gradients(dx, whole.a, whole.b)

    def merged_weight(self, *, narrow: bool = False) -> Bounded:
        formed = (self.narrow if narrow else self.wide).round
        change = self._delta_matrix(narrow=narrow) - self.first._delta_matrix(narrow=narrow)  # noqa: SLF001
        beside = self._as_weight(self.base.round(self.first.w + formed(change)))
        return super().merged_weight(narrow=narrow).either(beside)


def departures(init: str, w: Array, a0: Array, b0: Array, s: float, dtype: str) -> dict[str, tuple[float, Bounded]]:
    """What tells how far s·B₀·A₀ is from what ``init`` asks for: name -> (found, expected). W (out, in).

    "pissa": ‖W - s B₀ A₀‖₂ is the next singular value of W, which no matrix of rank r goes below (Eckart and Young,
    1936), and what is left is orthogonal to B₀ and to A₀, as of singular vectors. "olora": B₀ has orthonormal columns,
    and what B₀ A₀ leaves of W is zero in the first r columns and orthogonal to B₀, which only Q R cut to rank r does.

    The decompositions are those of W + E. With k = min(out, in) reflections from either side, each of which rounds
    every element that it touches at most once for each of its own, ‖E‖ <= k (out + in) u ‖W‖ in the Frobenius norm
    (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., lemma 19.3, to first order). The computed
    vectors are as far from orthonormal ones, on each side. Storing B₀ and A₀ rounds each element thrice: root, product,
    storage.
    """
    r, u, size = len(a0), UNIT_ROUNDOFF[dtype], float(np.linalg.norm(w))
    unit = min(w.shape) * sum(w.shape) * u
    stored = 6 * u * s * float(np.linalg.norm(np.abs(b0) @ np.abs(a0)))
    if init == "pissa":
        rest, error = w - s * b0 @ a0, 4 * unit * size + stored
        following = np.append(np.linalg.svd(w, compute_uv=False), 0.0)[r]
        return {
            "‖W - s B₀ A₀‖₂": (float(np.linalg.norm(rest, 2)), _bounded(following, error)),
            "‖B₀ᵀ (W - s B₀ A₀)‖": (float(np.linalg.norm(b0.T @ rest)), _bounded(0.0, error * np.linalg.norm(b0))),
            "‖(W - s B₀ A₀) A₀ᵀ‖": (float(np.linalg.norm(rest @ a0.T)), _bounded(0.0, error * np.linalg.norm(a0))),
        }
    rest, stored = w - b0 @ a0, stored / s
    return {
        "‖B₀ᵀ B₀ - 1‖": (float(np.linalg.norm(b0.T @ b0 - np.eye(r))), _bounded(0.0, 2 * unit * r**0.5)),
        "‖(W - B₀ A₀)[:, :r]‖": (float(np.linalg.norm(rest[:, :r])), _bounded(0.0, 2 * unit * size + stored)),
        "‖B₀ᵀ (W - B₀ A₀)‖": (float(np.linalg.norm(b0.T @ rest)), _bounded(0.0, 4 * unit * size + 2 * stored)),
    }


def _bounded(value: float, bound: Any) -> Bounded:
    return Bounded(np.array([value]), np.array([bound]))
