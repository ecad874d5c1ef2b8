"""The reference's layers and models, with linear layers computed by the fused functions.

Everything else is inherited: adapters, switching, merging, files. What the functions do not serve (convolutions,
embeddings, quantised bases, modules with hooks, merged layers) is computed as the reference does it.
"""

from __future__ import annotations

from torch import Tensor, nn

from lora_ref.delta import Delta, FusedDelta, LinearDelta, is_quantised, weight_of
from lora_ref.fused.products import stacked
from lora_ref.fused.single import dora, linear
from lora_ref.layers import LoraLayer
from lora_ref.model import LoraModel
from lora_ref.variants import DoraDelta


class FusedLayer(LoraLayer):
    """A ``LoraLayer`` that keeps less between forward and backward, and takes less time."""

    def forward(self, x: Tensor) -> Tensor:
        deltas = [self.adapters.delta(name) for name in self.adapters.applied()]
        if self.merged or not self._serves(deltas):
            return super().forward(x)
        weight, bias, first = weight_of(self.base), self.bias, deltas[0]
        w = weight.t() if first.transposed else weight  # (out, in)
        dropout = first.spec.dropout if first.training else 0.0
        if isinstance(first, DoraDelta):
            return dora(x, w, bias, *first.factors(), first.m, first.scaling, dropout=dropout)
        return linear(x, w, bias, *stacked([(*d.factors(), d.scaling) for d in deltas]), dropout=dropout)

    def _serves(self, deltas: list[Delta]) -> bool:
        """Several adapters at once are one product, unless each has a dropout mask or a magnitude of its own."""
        alone = len(deltas) == 1
        return (
            bool(deltas)
            and not is_quantised(self.base)
            and is_frozen_product(self.base)
            and all(isinstance(delta, LinearDelta | FusedDelta) and is_bare(delta) for delta in deltas)
            and (alone or not any(isinstance(d, DoraDelta) or (d.training and d.spec.dropout) for d in deltas))
        )


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


class FusedModel(LoraModel):
    """A ``LoraModel`` of ``FusedLayer``s: ``attach(model, spec, kind=FusedModel)``."""

    wrapper = FusedLayer
