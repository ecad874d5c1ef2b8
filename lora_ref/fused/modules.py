"""The reference's layers and models, with linear layers computed by the fused functions.

Everything else is inherited: adapters, switching, merging, files. What the functions do not serve (convolutions,
embeddings, quantised bases, modules with hooks, merged layers) is computed as the reference does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lora_ref.delta import Delta, FusedDelta, LinearDelta, is_quantised
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
        adapters, base = self.adapters, self.base
        names = adapters.applied()
        if not names or self.merged or not is_frozen_product(base) or _quantised(base):
            return None
        deltas = [adapters.delta(name) for name in names]
        if not _one_product(deltas):
            return None
        first, own = deltas[0], base._parameters  # noqa: SLF001 (what is_frozen_product has looked at)
        w = own["weight"].t() if first.transposed else own["weight"]  # type: ignore[union-attr] # (out, in)
        a, b, s = stacked([(*delta.factors(), delta.scaling) for delta in deltas])
        m = first.m if isinstance(first, DoraDelta) else None
        return Served(Projection(w, own["bias"], a, b, s), first.spec.dropout if first.training else 0.0, m)  # type: ignore[arg-type]


def _one_product(deltas: list[Delta]) -> bool:
    """Several adapters at once are one product, unless each has a dropout mask or a magnitude of its own."""
    for delta in deltas:
        if not isinstance(delta, LinearDelta | FusedDelta) or not is_bare(delta):
            return False
        if len(deltas) > 1 and (isinstance(delta, DoraDelta) or (delta.training and delta.spec.dropout)):
            return False
    return True


def _quantised(base: nn.Module) -> bool:
    return type(base) is not nn.Linear and is_quantised(base)


class FusedModel(LoraModel):
    """``attach(model, spec, kind=FusedModel)``: a model of ``FusedLayer``s, and of blocks where these make some."""

    wrapper = FusedLayer

    def _replace(self, new: Mapping[Any, nn.Module]) -> None:
        release_blocks(self.module)
        super()._replace(new)
        fuse_blocks(self.module)
