"""What a step of SGD makes of a factor, with a bound for its rounding."""

from __future__ import annotations

import numpy as np

from conformance.contract import Array
from lora_ref.oracle import Oracle
from lora_ref.rounding import Bounded, exact


def stepped(oracle: Oracle, before: Array, gradient: Bounded, lr: float, decay: float = 0.0) -> Bounded:
    """p - lr (g + decay p): each sum is formed in float32 or wider, then stored in the dtype of p."""
    p = exact(before.astype(np.float64))
    if decay:
        gradient = oracle.adapter.round(oracle.wide.round(gradient + p.times(decay)))
    return oracle.adapter.round(oracle.wide.round(p - gradient.times(lr)))
