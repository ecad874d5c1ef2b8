"""Functions that are differentiated once: a second derivative is refused, as h and u are no inputs of theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable

Backward = Callable[..., Any]


def once(backward: Backward) -> Backward:
    """``once_differentiable``, whose cost of some microseconds a call is spared where no graph is recorded."""
    guarded = once_differentiable(backward)

    @wraps(backward)
    def run(ctx: Any, *gradients: Any) -> Any:
        return (guarded if torch.is_grad_enabled() else backward)(ctx, *gradients)

    return run
