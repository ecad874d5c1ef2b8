"""What a LoRA layer computes at the moment, as the fused functions take it; and when a module need not be called."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from lora_ref.fused.single import dora, linear
from lora_ref.fused.stack import Projection


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
    """Whether a call of this linear layer is x Wᵀ + bias with parameters that do not train, and nothing else."""
    own = base._parameters  # noqa: SLF001 (a parametrized weight is an attribute, not a parameter)
    trained = any(parameter is not None and parameter.requires_grad for parameter in own.values())
    return is_bare(base) and own.get("weight") is not None and not trained
