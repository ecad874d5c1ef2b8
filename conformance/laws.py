"""The laws from which initial factors are drawn, and an exact test of whether values follow one.

The Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant: the empirical distribution function of n independent
draws strays from the true one, anywhere, by more than sqrt(ln(2/d) / 2n) with a probability of at most d, for every n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.dropout import FALSE_ALARM
from conformance.violation import must
from lora_ref.rounding import UNIT_ROUNDOFF

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """``scale`` of (fan_in, r) makes values standard ones, of which ``cdf`` and ``bound`` speak."""

    words: str
    scale: Callable[[int, int], float]
    cdf: Callable[[Values], Values]
    bound: float = math.inf


def _uniform(x: Values) -> Values:
    cdf: Values = np.clip((x + 1.0) / 2.0, 0.0, 1.0)
    return cdf


def _normal(x: Values) -> Values:
    erf: Any = np.vectorize(math.erf, otypes=[np.float64])
    cdf: Values = (1.0 + erf(x / math.sqrt(2.0))) / 2.0
    return cdf


LAWS: dict[str, Law] = {
    "kaiming_uniform_a5": Law("U(±1/√fan_in)", lambda fan_in, _: fan_in**-0.5, _uniform, 1.0),
    "he_uniform": Law("U(±√(6/fan_in))", lambda fan_in, _: (6.0 / fan_in) ** 0.5, _uniform, 1.0),
    "normal": Law("N(0, 1)", lambda _, __: 1.0, _normal),
    "normal_over_r": Law("N(0, 1/r²)", lambda _, r: 1.0 / r, _normal),
}


def judge_law(what: str, values: Values, name: str, fan_in: int, r: int, dtype: str) -> None:
    """The distribution of all values together, and, where the law has bounds, that they lie within and reach them.

    Narrow dtypes add a slack: drawn on a lattice of u and rounded by at most u, a value moves by 2u of its size.

    Raises:
        Violation: values that the law gives with a probability of at most 2e-12.
    """
    law, u = LAWS[name], UNIT_ROUNDOFF[dtype]
    x = np.sort(values.reshape(-1) / law.scale(fan_in, r))
    n = x.size
    top = float(np.abs(x).max(initial=0.0))
    must(np.isfinite(x).all(), what, f"{law.words}, finite", "NaN or infinite")
    if math.isfinite(law.bound):
        room = -math.log(FALSE_ALARM) / n  # (1 - room)^n <= FALSE_ALARM: some value lies above that share of the bound
        lowest = law.bound * max(0.0, 1.0 - room - 4 * u)
        sizes = f"{law.words}: the largest of {n} between {lowest:.5g} and 1 times its bound"
        must(lowest <= top <= law.bound * (1 + 2 * u), f"{what}, largest value", sizes, f"{top:.5g}")
    room = math.sqrt(math.log(2.0 / FALSE_ALARM) / (2 * n)) + 2 * u
    truth, steps = law.cdf(x), np.arange(n + 1) / n
    off = max(float(np.max(steps[1:] - truth)), float(np.max(truth - steps[:-1])))
    must(off <= room, f"{what}, distribution", f"{law.words}, within {room:.3g} ({n} draws)", f"{off:.3g} away")
