"""Named causes: the defects that leave a recognisable residual.

A cause is named only where it explains every element to within the rounding bound, scaled by how much it magnifies.
"""

from __future__ import annotations

import math

import numpy as np

from lora_ref.geometry import Array
from lora_ref.rounding import Bounded
from lora_ref.spec import LoraSpec


def explain(got: Array, expected: Bounded, delta: Array | None, spec: LoraSpec | None) -> str:
    """One phrase for what is wrong with ``got``, or "" where no known defect fits.

    ``delta`` is the part of the expected value that s multiplies; without it all of the value is.
    """
    value, slack = expected.value, expected.bound
    if not np.isfinite(got).all():
        return "not finite (NaN or infinite)"
    part = value if delta is None else delta
    base = value - part
    named = _multiple(got - base, part, slack, spec, whole=delta is None)
    if named:
        return named
    if delta is not None and _fits(got, delta, slack):
        return "the base's own share is missing"
    if value.ndim == 2 and value.shape[0] == value.shape[1] and _fits(got, value.T, slack):
        return "transposed"
    return _permuted(got, value, slack)


def _multiple(residual: Array, part: Array, slack: Array, spec: LoraSpec | None, *, whole: bool) -> str:
    size = float((part * part).sum())
    if not size:
        return ""
    c = float((residual * part).sum()) / size
    if not _fits(residual, c * part, slack * max(1.0, abs(c))):
        return ""
    what = "the value" if whole else "the delta"
    noise = float(np.sqrt((slack * slack).sum() / size))  # how well c is known
    fits = [words for factor, words in _factors(spec) if abs(c - factor) <= noise * max(1.0, abs(factor))]
    return f"{what} is scaled by {c:.3f}" + (f": {' or '.join(fits)}" if fits else "")


def _factors(spec: LoraSpec | None) -> list[tuple[float, str]]:
    """Multiples of the right value, and what each of them is known for."""
    known = [(0.0, "it is missing"), (2.0, "it is doubled"), (-1.0, "its sign is flipped")]
    return known + _scalings(spec)


def _scalings(spec: LoraSpec | None) -> list[tuple[float, str]]:
    """Wrong scaling laws, as multiples of the right one; one that happens to be right is left out."""
    if spec is None:
        return []
    s, r, alpha = spec.scaling, spec.r, spec.alpha
    laws = [
        (1.0, "no scaling at all (s = 1)"),
        (alpha, "alpha is not divided by r"),
        (alpha / r, "alpha/r where rsLoRA asks for alpha/sqrt(r)"),
        (alpha / math.sqrt(r), "alpha/sqrt(r) where alpha/r was asked for"),
        (s * s, "s is applied twice"),
        (1.0 / r, "alpha is ignored"),
        (float(int(s)), "s is cut to a whole number"),
    ]
    return [(law / s, words) for law, words in laws if law != s]


def _permuted(got: Array, value: Array, slack: Array) -> str:
    if value.ndim < 2 or not value.size:
        return ""
    rows, found = value.reshape(-1, value.shape[-1]), got.reshape(-1, value.shape[-1])
    room = slack.reshape(rows.shape)
    used: list[int] = []
    for row in found:
        fits = [i for i in range(len(rows)) if i not in used and _fits(row, rows[i], room[i])]
        if not fits:
            return ""
        used.append(fits[0])
    return "the right rows in the wrong order"


def _fits(got: Array, value: Array, slack: Array) -> bool:
    return bool((np.abs(got - value) <= slack).all())
