"""The case itself, judged before it is timed: at its very shape, on integers whose every sum is exact.

Conformance judges small shapes. A kernel may take another path for large ones, and so the layer that is about to be
timed must first give the closed form's bits (see ``conformance.cases`` for the exact tier) in y, dx, dA and dB.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bench.cases import Case
from bench.subject import Subject
from conformance.contract import Array, Weights, dtype_of
from lora_ref.geometry import Linear
from lora_ref.rounding import PRECISION_BITS

_ROWS = 16  # of dy that are not zero, and of y that are compared
_DENSITIES = (0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05, 0.03, 0.02, 0.01)


class WrongError(Exception):
    """The layer's result is not that of the closed form; the message says where."""


def check(case: Case, subject: Subject, device: str = "cpu") -> None:
    """Overwrites the weight and the factors of a single layer, so that the subject is of no use afterwards.

    Raises:
        WrongError: any element differs.
    """
    at = _draw(case)
    got = _by_model(case, subject, at, device) if subject.handle is not None else _by_contract(case, subject, at)
    _compare(case, at, got)


def _by_model(case: Case, subject: Subject, at: dict[str, Array], device: str) -> dict[str, Array | None]:
    assert subject.handle is not None
    w = subject.handle.base_tensors()[f"{case.module}.weight"]
    ((a, b),) = subject.factors.values()
    with torch.no_grad():
        for live, values in ((w, at["w"]), (a, at["a"]), (b, at["b"])):
            live.copy_(torch.from_numpy(values))
    x, dy = (torch.from_numpy(at[n]).to(device, w.dtype).reshape(case.batch, case.seq, -1) for n in ("x", "dy"))
    subject.module.eval()  # without dropout
    y = subject.call({"x": x.requires_grad_()})
    torch.autograd.backward(y, dy)
    found = {"y": y, "dx": x.grad, "dA": a.grad, "dB": b.grad}
    return {name: None if t is None else t.detach().double().cpu().numpy() for name, t in found.items()}


def _by_contract(case: Case, subject: Subject, at: dict[str, Array]) -> dict[str, Array | None]:
    """Through the Layer or Operator facet, which fills in the arrays itself."""
    assert subject.backend is not None
    base, adapter = dtype_of(case.base_dtype), dtype_of(case.adapter_dtype)
    geometry = Linear(case.in_features, case.out_features)
    w, a, b = at["w"].astype(base), at["a"].astype(adapter), at["b"].astype(adapter)
    weights = Weights(geometry, w, None, a, b, case.adapter_dtype)
    x, dy = (at[n].astype(base).reshape(case.batch, case.seq, -1) for n in ("x", "dy"))
    spec = replace(case.spec, dropout=0.0)
    if subject.backend.layer is not None:
        grads = subject.backend.layer.attach(spec, weights).vjp(x, dy)
    else:
        assert subject.backend.operator is not None
        grads = subject.backend.operator.vjp(spec, weights, x, dy)
    found = {"y": grads.y, "dx": grads.dx, "dA": grads.da, "dB": grads.db}
    return {name: None if v is None else v.astype(np.float64) for name, v in found.items()}


def _draw(case: Case) -> dict[str, Array]:
    """Entries -1, 0, 1, as dense as keeps the sum of absolute values of every product exact in the narrowest dtype."""
    bits = min(PRECISION_BITS[case.base_dtype], PRECISION_BITS[case.adapter_dtype])
    shapes = {
        "w": (case.out_features, case.in_features),
        "a": (case.rank, case.in_features),
        "b": (case.out_features, case.rank),
        "x": (case.tokens, case.in_features),
        "dy": (case.tokens, case.out_features),
    }
    for density in _DENSITIES:
        rng = np.random.default_rng(0)
        at = {n: rng.choice([-1.0, 0.0, 1.0], s, p=[density / 2, 1 - density, density / 2]) for n, s in shapes.items()}
        at["dy"][_rows(case, inverse=True)] = 0
        largest = max(float(v.max()) for v in _closed_form(case, {n: np.abs(v) for n, v in at.items()}).values())
        if largest <= 2**bits:
            return {n: v.astype(np.float32) for n, v in at.items()}
    raise AssertionError(f"no lattice keeps {case.case_id} exact")


def _rows(case: Case, *, inverse: bool = False) -> Array:
    chosen = np.random.default_rng(1).permutation(case.tokens)
    return np.sort(chosen[_ROWS:] if inverse else chosen[:_ROWS])


def _closed_form(case: Case, at: dict[str, Array]) -> dict[str, Array]:
    """y and dx on the chosen rows, dA, dB, and what is stored on the way, in float64."""
    rows, s = _rows(case), case.spec.scaling
    w, a, b, x, dy = (at[n].astype(np.float64) for n in ("w", "a", "b", "x", "dy"))
    x, dy = x[rows], dy[rows]  # (rows, in), (rows, out); dy is zero elsewhere
    h, g = x @ a.T, dy @ b  # (rows, r)
    return {
        "y": x @ w.T + s * (h @ b.T),
        "dx": dy @ w + s * (g @ a),
        "dA": s * (g.T @ x),
        "dB": s * (dy.T @ h),
        "h": h * max(1, s),
        "g": g * max(1, s),
    }


def _compare(case: Case, at: dict[str, Array], got: dict[str, Array | None]) -> None:
    expected, rows = _closed_form(case, at), _rows(case)
    for name, values in got.items():
        if values is None:
            raise WrongError(f"{name} is missing")
        if name in {"y", "dx"}:
            values = values.reshape(case.tokens, -1)[rows]  # noqa: PLW2901 - the rows that are compared
        wrong = values != expected[name]
        if wrong.any():
            i, j = np.argwhere(wrong)[0]
            text = f"{name}[{i}, {j}] is {values[i, j]:g} and must be {expected[name][i, j]:g}"
            raise WrongError(f"{text} ({wrong.sum()} of {wrong.size} elements, exact integers)")
