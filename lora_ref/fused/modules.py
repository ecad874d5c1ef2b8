"""The reference's layers and models, with linear layers computed by the fused functions.

Everything else is inherited: adapters, switching, merging, files. What the functions do not serve (convolutions,
embeddings, quantised bases, bases with hooks of their own, merged layers) is computed as the reference does it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_ref.delta import Delta, FusedDelta, LinearDelta, is_quantised, weight_of
from lora_ref.fused.products import one_scaling
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
            return dora(x, w, bias, *first.factors(), first.magnitude_factor(), first.scaling, dropout=dropout)
        factors = [delta.factors() for delta in deltas]
        if len(deltas) == 1:
            return linear(x, w, bias, *factors[0], first.scaling, dropout=dropout)
        a, b = torch.cat([a for a, _ in factors]), torch.cat([b for _, b in factors], dim=1)
        s = one_scaling([(own.shape[0], delta.scaling) for (own, _), delta in zip(factors, deltas, strict=True)])
        return linear(x, w, bias, a, b, s)

    def _serves(self, deltas: list[Delta]) -> bool:
        """Several adapters at once are one product, unless each has a dropout mask or a magnitude of its own."""
        alone = len(deltas) == 1
        return (
            bool(deltas)
            and _plain(self.base)
            and all(isinstance(delta, LinearDelta | FusedDelta) for delta in deltas)
            and (alone or not any(isinstance(d, DoraDelta) or (d.training and d.spec.dropout) for d in deltas))
        )


def _plain(base: nn.Module) -> bool:
    """Whether a call of the base is x Wᵀ + bias and nothing else: no hooks, no forward of its own, nothing trained."""
    return not (
        is_quantised(base)
        or base._forward_hooks  # noqa: SLF001 (no public name)
        or base._forward_pre_hooks  # noqa: SLF001
        or "forward" in vars(base)
        or any(parameter.requires_grad for parameter in base.parameters(recurse=False))
    )


class FusedModel(LoraModel):
    """A ``LoraModel`` of ``FusedLayer``s: ``attach(model, spec, kind=FusedModel)``."""

    wrapper = FusedLayer
