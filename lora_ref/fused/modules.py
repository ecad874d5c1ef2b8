"""The reference's layers and models, with linear layers computed by the fused functions.

Everything else is inherited: adapters, switching, merging, files. What the functions do not serve (convolutions,
embeddings, quantised bases, modules with hooks, merged layers) is computed as the reference does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lora_ref.delta import Delta, FusedDelta, LinearDelta, is_quantised, weight_of
from lora_ref.fused.blocks import fuse_blocks, release_blocks
from lora_ref.fused.products import stacked
from lora_ref.fused.served import Served, is_bare, is_frozen_product
from lora_ref.fused.stack import Projection
from lora_ref.layers import LoraLayer
from lora_ref.model import LoraModel
from lora_ref.variants import DoraDelta


class FusedLayer(LoraLayer):
    """A ``LoraLayer`` that keeps less between forward and backward, and takes less time."""

    def forward(self, x: Tensor) -> Tensor:
        served = self.served()
        return super().forward(x) if served is None else served(x)

    def served(self) -> Served | None:
        """What the fused functions are to compute, or None where they cannot."""
        deltas = [self.adapters.delta(name) for name in self.adapters.applied()]
        if not deltas or self.merged or not self._serves(deltas):
            return None
        weight, first = weight_of(self.base), deltas[0]
        w = weight.t() if first.transposed else weight  # (out, in)
        projection = Projection(w, self.bias, *stacked([(*delta.factors(), delta.scaling) for delta in deltas]))
        m = first.m if isinstance(first, DoraDelta) else None
        return Served(projection, first.spec.dropout if first.training else 0.0, m)

    def _serves(self, deltas: list[Delta]) -> bool:
        """Several adapters at once are one product, unless each has a dropout mask or a magnitude of its own."""
        alone = len(deltas) == 1
        return (
            (type(self.base) is nn.Linear or not is_quantised(self.base))
            and is_frozen_product(self.base)
            and all(isinstance(delta, LinearDelta | FusedDelta) and is_bare(delta) for delta in deltas)
            and (alone or not any(isinstance(d, DoraDelta) or (d.training and d.spec.dropout) for d in deltas))
        )


class FusedModel(LoraModel):
    """``attach(model, spec, kind=FusedModel)``: a model of ``FusedLayer``s, and of blocks where these make some."""

    wrapper = FusedLayer

    def _replace(self, new: Mapping[Any, nn.Module]) -> None:
        release_blocks(self.module)
        super()._replace(new)
        fuse_blocks(self.module)
