"""Which inputs did dropout keep? Probed from outside, so that a backend's own mask need not be trusted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from conformance.cases import Case
from conformance.contract import Array
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.geometry import Array as Float64

FALSE_ALARM = 1e-12  # probability that a right implementation fails one frequency test


def replayed_mask(subject: Subject, case: Case, *, seed: int) -> Float64:
    """What dropout multiplies A's input with under this seed: an array of 0 and 1/(1-p) in the shape of x.

    A fresh layer with W = 0 is asked for each input column in turn: A picks the column, B shows it as y[..., 0], and
    x is all ones. The same seed and shapes give the same mask again, as the contract demands. s is 1 and 1/(1-p) a
    power of two where this is used, so that the answer is exact.

    Raises:
        Violation: an answer that is neither 0 nor 1/(1-p): dropout is not inverted, or acts elsewhere.
    """
    probe = replace(case, base_zero=True, bias=False, alpha=float(case.r), rslora=False)
    handle = subject.attach(probe)
    ones = np.ones(case.arrays.x.shape, case.arrays.x.dtype)
    keep = 1.0 / (1.0 - case.dropout)
    row = _first_adapted_row(case)
    mask = np.zeros(ones.shape)
    m = None if case.arrays.m is None else np.ones_like(case.arrays.m)  # DoRA: that row's norm is |s| = 1
    for column in range(case.in_features):
        a, b = np.zeros_like(case.arrays.a), np.zeros_like(case.arrays.b)
        a[..., 0, column] = b[..., 0, 0] = 1  # of each expert, where there are several
        handle.write(a, b, m=m)
        y = handle.forward(ones, train=True, seed=seed)[..., row].astype(np.float64)
        mask[..., column] = _multiplier(y, keep)
    return mask


def _multiplier(seen: Float64, keep: float) -> Float64:
    valid = (seen == 0.0) | (seen == keep)
    odd = seen[~valid].reshape(-1)
    must(valid.all(), "what dropout multiplies A's input with", f"0 or 1/(1-p) = {keep:g}", odd[:3])
    return seen


def _first_adapted_row(case: Case) -> int:
    """The output that shows B[0, 0]: in fused layers, the first row of the first enabled part."""
    if case.kind != "fused":
        return 0
    return sum(case.parts[: case.enabled.index(True)])


def judge_frequency(what: str, hits: Array, probability: float) -> None:
    """The share of true values, against the probability that they should have.

    Hoeffding's inequality: n independent draws stray by more than sqrt(ln(2/d) / 2n) with a probability below d.

    Raises:
        Violation: the share is out of that range.
    """
    n = hits.size
    room = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n))
    share = float(hits.mean())
    must(abs(share - probability) <= room, what, f"{probability:g} ± {room:.3g} ({n} draws)", f"{share:.3g}")
