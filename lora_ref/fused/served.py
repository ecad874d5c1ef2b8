"""What a LoRA layer computes at the moment, as the fused functions take it; and when a module need not be called."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lora_ref.fused.single import dora, linear
from lora_ref.fused.stack import Projection

_PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class Served(NamedTuple):
    """A linear layer, dropout on the input of A, and DoRA's magnitude m (out,), where there is one."""

    projection: Projection
    dropout: float = 0.0
    m: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        w, bias, a, b, s = self.projection
        assert a is not None
        assert b is not None
        if self.m is None:
            return linear(x, w, bias, a, b, s, dropout=self.dropout)
        assert isinstance(s, float)
        return dora(x, w, bias, a, b, s, self.m, dropout=self.dropout)


def is_bare(module: nn.Module) -> bool:
    """Whether a call of the module is its class's forward and nothing else: no hooks, no forward of its own."""
    return not (
        module._forward_hooks  # noqa: SLF001 (no public names)
        or module._forward_pre_hooks  # noqa: SLF001
        or module._backward_hooks  # noqa: SLF001
        or module._backward_pre_hooks  # noqa: SLF001
        or "forward" in vars(module)
    )


def is_frozen_product(base: nn.Module) -> bool:
    """Whether a call of this linear layer is x Wᵀ + bias with plain tensors that do not train, and nothing else."""
    own = base._parameters  # noqa: SLF001 (a parametrized weight is an attribute, not a parameter)
    for parameter in own.values():
        if parameter is not None and parameter.requires_grad:
            return False
    weight = own.get("weight")
    return weight is not None and is_plain(weight) and is_bare(base)


def is_plain(weight: Tensor) -> bool:
    """Whether the tensor holds its numbers as they are: neither quantised nor spread over devices."""
    return weight.dtype in _PLAIN and (type(weight) is nn.Parameter or not is_traceable_wrapper_subclass(weight))
