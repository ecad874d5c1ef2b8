"""The low-rank branch: two factors, the delta ΔW = s·B·A that they stand for, and its forward without forming it.

One class per kind of base. B is the zero factor everywhere, so a fresh branch adds nothing.
Sources: "LoRA" (Hu et al., 2021, arXiv:2106.09685), section 4.1; initialisation as in microsoft/LoRA `layers.py`,
except that its embedding zeroes A. Names: r rank, g groups, k kernel, ``...`` any leading dimensions, also of size 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy

from lora_ref.errors import LoraError
from lora_ref.expert_stack import ExpertStack
from lora_ref.spec import LoraSpec

KINDS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, ExpertStack)  # and Conv1D, see the end


class Delta(nn.Module):
    """What all kinds share: the factors ``a`` and ``b``, the scale, dropout on the input of A, and the reset."""

    reads_base = False  # whether ``change`` depends on the base's output

    def __init__(
        self, base: nn.Module, spec: LoraSpec, a: Sequence[int], b: Sequence[int], dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        weight = read_weight(base)
        self.spec = spec
        self.factor = 1.0  # a multiplier to turn at run time; never saved
        self.shape = weight.shape
        self.a = nn.Parameter(torch.empty(*a, dtype=dtype or weight.dtype, device=weight.device))
        self.b = nn.Parameter(torch.empty(*b, dtype=dtype or weight.dtype, device=weight.device))
        self.reset()

    @property
    def scaling(self) -> float:
        return self.spec.scaling * self.factor

    def reset(self) -> None:
        """A ~ U(±1/√fan_in), which is Kaiming's law with a = √5 (He et al., 2015, eq. 10, as in nn.Linear); B = 0."""
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        nn.init.zeros_(self.b)

    def reset_parameters(self) -> None:
        """The name by which torch asks for values after ``to_empty``."""
        self.reset()

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole delta: s·B·A is all that it adds."""
        return self.a, self.b

    def weight(self) -> Tensor:
        """ΔW in the base weight's shape and layout, formed in float32 or wider and not rounded further."""
        wide, device = torch.promote_types(self.a.dtype, torch.float32), self.a.device.type
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with exact:
            return self._product(self.a.to(wide), self.b.to(wide)).mul_(self.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """s·B(A(dropout(x))), in the shape of the base's output."""
        return self.scaling * self._branch(self._dropped(x))

    def change(self, x: Tensor, out: Tensor) -> Tensor:  # noqa: ARG002 (variants read it)
        """What is added to ``out``, the base's own output."""
        y: Tensor = self(x)
        return y

    def _dropped(self, x: Tensor) -> Tensor:
        x = x.to(self.a.dtype)
        return F.dropout(x, self.spec.dropout, self.training) if self.spec.dropout else x

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def _branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class LinearDelta(Delta):
    """For nn.Linear, weight (out, in), and transformers' Conv1D, weight (in, out): a (r, in), b (out, r)."""

    def __init__(self, base: nn.Module, spec: LoraSpec, dtype: torch.dtype | None = None) -> None:
        out, in_ = _sizes(base)
        self.transposed = _is_conv1d(base)  # first, as the reset of a variant reads it
        super().__init__(base, spec, (spec.r, in_), (out, spec.r), dtype)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        ba = b @ a  # (out, in)
        return ba.T if self.transposed else ba

    def _branch(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.a)  # (..., in) -> (..., r)
        return F.linear(h, self.b)  # (..., out)


class FusedDelta(Delta):
    """For a linear whose rows are several projections, stacked (query, key, value; gate, up): one branch for each.

    ``parts`` are the rows of each, equal or not (grouped-query attention); only ``enabled`` parts get a branch, the
    others get zero. a (n·r, in) stacks the n enabled A, b (enabled rows, r) their B: rows of part i += s·B_i·A_i.
    """

    def __init__(
        self,
        base: nn.Module,
        spec: LoraSpec,
        parts: Sequence[int],
        enabled: Sequence[bool] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        out, in_ = _sizes(base)
        sizes, on = tuple(parts), (True,) * len(parts) if enabled is None else tuple(enabled)
        if sum(sizes) != out or any(rows < 0 for rows in sizes):
            raise LoraError(f"parts {sizes} must add up to the {out} rows of the base")
        if len(on) != len(sizes) or not any(on):
            raise LoraError(f"enabled {on} must say yes or no for each part of {sizes}, and yes at least once")
        rows = sum(itertools.compress(sizes, on))
        super().__init__(base, spec, (sum(on) * spec.r, in_), (rows, spec.r), dtype)
        self.transposed = _is_conv1d(base)
        self.parts, self.enabled = sizes, on

    def _blocks(self, b: Tensor) -> Tensor:
        """(out, n·r): B_i in the rows of part i and the columns of A_i, zero elsewhere."""
        each = iter(torch.split(b, list(itertools.compress(self.parts, self.enabled))))  # n times (rows_i, r)
        parts = zip(self.parts, self.enabled, strict=True)
        blocks = [next(each) if on else b.new_zeros(rows, 0) for rows, on in parts]
        out: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return out

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a, self._blocks(self.b)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        ba = self._blocks(b) @ a  # (out, n·r)·(n·r, in) -> (out, in)
        return ba.T if self.transposed else ba

    def _branch(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.a)  # (..., in) -> (..., n·r)
        return F.linear(h, self._blocks(self.b))  # (..., out)


class EmbeddingDelta(Delta):
    """For nn.Embedding, weight (num, dim): a (r, num) ~ N(0, 1), b (dim, r); ΔW = s·(B·A)ᵀ.

    ``padding_idx`` means what it does in nn.Embedding: that column of A gets no gradient, and forward still reads it.
    A's gradient is dense even where the base is ``sparse``: that is about the gradient of W, and W is frozen.
    """

    def __init__(self, base: nn.Embedding, spec: LoraSpec, dtype: torch.dtype | None = None) -> None:
        if spec.dropout:
            raise LoraError("dropout acts on the input of A, and an embedding's input is ids: set dropout to 0")
        if base.max_norm is not None:
            raise LoraError("an embedding with max_norm rewrites its weight on each call: W + ΔW has no meaning there")
        if base.scale_grad_by_freq:
            raise LoraError("scale_grad_by_freq is a rule for the rows of W and has no counterpart for A and B")
        super().__init__(base, spec, (spec.r, base.num_embeddings), (base.embedding_dim, spec.r), dtype)
        self.padding_idx = base.padding_idx

    def reset(self) -> None:
        nn.init.normal_(self.a)
        nn.init.zeros_(self.b)

    def _dropped(self, x: Tensor) -> Tensor:
        return x  # ids

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return (b @ a).T  # (num, dim)

    def _branch(self, x: Tensor) -> Tensor:
        h = F.embedding(x, self.a.T, self.padding_idx)  # (...) -> (..., r)
        return F.linear(h, self.b)  # (..., dim)


class ConvDelta(Delta):
    """For nn.Conv1d, 2d, 3d, weight (out, in/g, *k): LoRA's definition on the flattened weight, for any g and any r.

    a (r, in/g, *k), b (out, r, 1, ...); ΔW = s·(B as out x r)·(A as r x in/g·∏k). A is a convolution with the base's
    own geometry, B one of size 1. All groups share A: each applies it to its own channels, and B to what it gave.
    """

    def __init__(
        self, base: nn.Conv1d | nn.Conv2d | nn.Conv3d, spec: LoraSpec, dtype: torch.dtype | None = None
    ) -> None:
        out, *rest = base.weight.shape  # rest: in/g, *k
        super().__init__(base, spec, (spec.r, *rest), (out, spec.r, *(1 for _ in base.kernel_size)), dtype)
        self.dims, self.groups = len(base.kernel_size), base.groups
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation
        self.padding_mode = base.padding_mode
        self.pad = base._reversed_padding_repeated_twice  # noqa: SLF001 (what 'same' pads has no public name)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return (b.flatten(1) @ a.flatten(1)).view(self.shape)  # (out, r)·(r, in/g·∏k) -> (out, in/g, *k)

    def _branch(self, x: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.dims - 1]
        padding: str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.pad, mode=self.padding_mode), (0,) * self.dims
        a = self.a.repeat(self.groups, *(1 for _ in self.a.shape[1:]))  # (g·r, in/g, *k)
        h = conv(x, a, None, self.stride, padding, self.dilation, self.groups)  # (..., in, *) -> (..., g·r, *)
        return conv(h, self.b, groups=self.groups)  # (..., out, *size')


def make_delta(
    base: nn.Module,
    spec: LoraSpec,
    *,
    dtype: torch.dtype | None = None,
    parts: Sequence[int] | None = None,
    enabled: Sequence[bool] | None = None,
) -> Delta:
    """The branch for ``base``, on its device, in ``dtype`` or else the dtype of its weight.

    Raises:
        LoraError: the base cannot carry LoRA, or not with this spec.
    """
    kind, linear = type(base).__name__, isinstance(base, nn.Linear) or _is_conv1d(base) or is_quantised(base)
    _check_base(base)
    if dtype is not None and not dtype.is_floating_point:
        raise LoraError(f"an adapter's dtype must be a floating-point one, got {dtype}")
    if enabled is not None and parts is None:
        raise LoraError("enabled says which parts get a branch, and has no meaning without parts")
    if spec.dora or spec.init != "default":
        if not linear or parts is not None:
            raise LoraError(f"DoRA and residual initialisations are for whole linear layers, not for this {kind}")
        from lora_ref.variants import DoraDelta, VariantDelta

        return (DoraDelta if spec.dora else VariantDelta)(base, spec, dtype)
    if linear:
        return LinearDelta(base, spec, dtype) if parts is None else FusedDelta(base, spec, parts, enabled, dtype)
    if parts is not None:
        raise LoraError(f"parts are the stacked rows of a linear; {kind} has none")
    if isinstance(base, nn.Embedding):
        return EmbeddingDelta(base, spec, dtype)
    if isinstance(base, ExpertStack):
        from lora_ref.expert_delta import ExpertDelta

        return ExpertDelta(base, spec, dtype)
    assert isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return ConvDelta(base, spec, dtype)


def supported(base: nn.Module) -> bool:
    """Whether ``make_delta`` knows this kind; it may still refuse this one."""
    return isinstance(base, KINDS) or _is_conv1d(base) or is_quantised(base)


def _check_base(base: nn.Module) -> None:
    kind = type(base).__name__
    if not supported(base):
        known = ", ".join(each.__name__ for each in KINDS)
        raise LoraError(f"{kind} cannot carry LoRA; {known} and Conv1D can")
    if is_quantised(base):
        return
    if not any(type(base).forward is known.forward for known in KINDS) and not _is_conv1d(base):
        raise LoraError(f"{kind} has a forward of its own, so W + ΔW may not be what it computes with")
    if isinstance(base, NonDynamicallyQuantizableLinear):
        raise LoraError("the output projection of nn.MultiheadAttention is never called, only its weight is read")
    weight = base._parameters.get("weight")  # noqa: SLF001 (a parametrized weight is an attribute, not a parameter)
    if weight is None or is_lazy(weight) or not weight.is_floating_point():
        raise LoraError(f"the weight of this {kind} is not a plain floating-point parameter")


@runtime_checkable
class Quantised(Protocol):
    """A linear base that stores its weight in few bits, computes x Wᵀ + bias with it, and can tell W (out, in)."""

    bias: Tensor | None

    def dequantized_weight(self) -> Tensor: ...


def is_quantised(base: nn.Module) -> bool:
    return isinstance(base, Quantised)


def read_weight(base: nn.Module) -> Tensor:
    """W as floating-point numbers, for reading: of a quantised base, what its forward computes with."""
    return base.dequantized_weight() if isinstance(base, Quantised) else weight_of(base)


def weight_of(base: nn.Module) -> nn.Parameter:
    weight = base.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _is_conv1d(base: nn.Module) -> bool:
    """Transformers' Conv1D, by its looks: this package does not depend on transformers."""
    return type(base).__name__ == "Conv1D" and hasattr(base, "nf")


def _sizes(base: nn.Module) -> tuple[int, int]:
    rows, columns = read_weight(base).shape
    return (columns, rows) if _is_conv1d(base) else (rows, columns)  # (out, in)
