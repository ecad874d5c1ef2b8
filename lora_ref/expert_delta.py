"""The branch of a stack of experts: one A and one B for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lora_ref.delta import Delta
from lora_ref.errors import LoraError
from lora_ref.expert_stack import ExpertStack, by_expert
from lora_ref.spec import LoraSpec


class ExpertDelta(Delta):
    """For ``ExpertStack``, weight (E, out, in): a (E, r, in), b (E, out, r), ΔW_e = s·B_e·A_e for each expert e."""

    def __init__(self, base: ExpertStack, spec: LoraSpec, dtype: torch.dtype | None = None) -> None:
        experts, out, in_ = base.weight.shape
        super().__init__(base, spec, (experts, spec.r, in_), (experts, out, spec.r), dtype)
        self.around = (base,)  # in a tuple: the base, of which the index is read, is no part of the branch

    @property
    def index(self) -> Tensor:
        """The expert of each row (M,)."""
        return self.around[0].index

    def reset(self) -> None:
        """A as in nn.Linear for each expert, from its own inputs alone; B = 0."""
        nn.init.uniform_(self.a, -(bound := self.a.shape[2] ** -0.5), bound)
        nn.init.zeros_(self.b)

    def factors(self) -> tuple[Tensor, Tensor]:
        """As PEFT packs them: (E·r, in), expert by expert, and (out, r·E), rank by rank."""
        return self.a.flatten(0, 1), self.b.permute(1, 2, 0).flatten(1)

    def unpacked(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """(E, r, in) and (E, out, r) from PEFT's packing, see ``factors``.

        Raises:
            LoraError: shapes that no stack of this size has.
        """
        for name, packed, own in zip("AB", (a, b), self.factors(), strict=True):
            if packed.shape != own.shape:
                raise LoraError(f"{name} of the experts has shape {tuple(packed.shape)}, not {tuple(own.shape)}")
        experts, out, r = self.b.shape
        return a.reshape(self.a.shape), b.reshape(out, r, experts).permute(2, 0, 1).contiguous()

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return b @ a  # (E, out, r)·(E, r, in) -> (E, out, in)

    def _branch(self, x: Tensor) -> Tensor:
        h = by_expert(x, self.index, self.a)  # (..., in) -> (..., r)
        return by_expert(h, self.index, self.b)  # (..., out)
