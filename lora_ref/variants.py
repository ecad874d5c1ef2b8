"""Variants of the branch of a linear layer: residual initialisations, and DoRA.

PiSSA ("PiSSA", Meng et al., 2024, arXiv:2404.02948, section 3) starts from the r largest singular triplets of W, OLoRA
("OLoRA", Büyükakyüz, 2024, arXiv:2406.01775, section 3) from the first r columns of its QR decomposition. Both train
W - s·B₀·A₀ + s·B·A. Here W itself stays as it is, and the branch is s·(B·A - B₀·A₀) with constant A₀, B₀: disabling
gives the original base bit for bit, and other adapters never notice. A fresh branch is exactly zero.
For DoRA see ``lora_ref.dora``, which says what is computed and how the norm is taken.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn

from lora_ref.delta import LinearDelta, read_weight
from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec


class VariantDelta(LinearDelta):
    """A branch that starts from W: a (r, in), b (out, r), and for residual initialisations their first values a0, b0.

    ``reset`` reads W, so it must be there first: after ``to_empty``, load the base, then reset the branch.
    """

    a0: Tensor | None
    b0: Tensor | None

    def __init__(self, base: nn.Module, spec: LoraSpec, dtype: torch.dtype | None = None) -> None:
        self.around = (base,)  # in a tuple: the base is no part of the branch. Set first, as reset reads it
        super().__init__(base, spec, dtype)

    @property
    def base(self) -> nn.Module:
        return self.around[0]

    def matrix(self) -> Tensor:
        """W as (out, in), in float32 or wider, without its history."""
        weight = read_weight(self.base).detach()
        return (weight.T if self.transposed else weight).to(torch.promote_types(weight.dtype, torch.float32))

    def reset(self) -> None:
        super().reset()
        if self.spec.init == "default":
            return
        w, r = self.matrix(), self.spec.r
        if r > min(w.shape):
            raise LoraError(f"{self.spec.init} takes r from a weight of shape {tuple(w.shape)}: r = {r} is too large")
        with torch.no_grad():
            if self.spec.init == "pissa":
                u, sizes, v = torch.linalg.svd(w, full_matrices=False)  # (out, k), (k), (k, in)
                root = (sizes[:r] / self.spec.scaling).sqrt()  # so that s·B₀·A₀ is the best approximation of rank r
                b, a = u[:, :r] * root, root[:, None] * v[:r]
            else:
                q, upper = torch.linalg.qr(w)  # (out, k), (k, in)
                b, a = q[:, :r], upper[:r]
            self.a.copy_(a)
            self.b.copy_(b)
        self.register_buffer("a0", self.a.detach().clone())
        self.register_buffer("b0", self.b.detach().clone())

    def first(self) -> tuple[Tensor, Tensor] | None:
        """A₀ and B₀, where the branch is what it differs from them."""
        if self.spec.init == "default":
            return None
        assert self.a0 is not None
        assert self.b0 is not None
        return self.a0, self.b0

    def factors(self) -> tuple[Tensor, Tensor]:
        """[A; A₀] (2r, in) and [B, -B₀] (out, 2r), as plain LoRA has them; with DoRA, those of V less W."""
        if (first := self.first()) is None:
            return super().factors()
        a0, b0 = first
        return torch.cat([self.a, a0]), torch.cat([self.b, -b0], dim=1)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        product = super()._product(a, b)
        if (first := self.first()) is None:
            return product
        return product - super()._product(*(factor.to(a.dtype) for factor in first))

    def _branch(self, x: Tensor) -> Tensor:
        branch = super()._branch(x)
        if (first := self.first()) is None:
            return branch
        a0, b0 = first
        return branch - F.linear(F.linear(x, a0), b0)  # (..., in) -> (..., r) -> (..., out)


class DoraDelta(VariantDelta):
    """ΔW = c·(W + s·B·A) - W with c = m / ‖W + s·B·A‖, one number for each output; m (out,) is trained too.

    A row without direction (norm 0) keeps c = 1, so that it can learn one.
    """

    reads_base = True

    def __init__(self, base: nn.Module, spec: LoraSpec, dtype: torch.dtype | None = None) -> None:
        super().__init__(base, spec, dtype)
        self.m = nn.Parameter(self.norm().to(self.a.dtype))

    def reset(self) -> None:
        super().reset()
        if hasattr(self, "m"):
            with torch.no_grad():
                self.m.copy_(self.norm())

    def norm(self) -> Tensor:
        """‖W + s·B·A‖ (out,), a constant for autograd."""
        with torch.no_grad():
            delta = super().weight()
            norm: Tensor = torch.linalg.vector_norm(self.matrix() + (delta.T if self.transposed else delta), dim=1)
            return norm

    def magnitude_factor(self) -> Tensor:
        """c (out,), in float32 or wider."""
        norm = self.norm()
        return torch.where(norm > 0, self.m / torch.where(norm > 0, norm, 1), 1)

    def weight(self) -> Tensor:
        c, delta = self.magnitude_factor(), super().weight()
        w = read_weight(self.base).detach().to(delta.dtype)
        return (c if self.transposed else c[:, None]) * (w + delta) - w  # W's shape

    def change(self, x: Tensor, out: Tensor) -> Tensor:
        c, bias = self.magnitude_factor(), self.base.bias
        scaled = out.to(c.dtype) if bias is None else out.to(c.dtype) - bias  # type: ignore[operator]
        y: Tensor = (c - 1) * scaled + c * self(x)  # (..., out)
        return y
