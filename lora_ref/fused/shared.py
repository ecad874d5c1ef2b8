"""Several projections of one x as one autograd function: query, key and value, or gate and up.

Between forward and backward it keeps x once, h (M, Σr) and, with dropout, one mask: the A of all projections see the
same dropped x, so that their products are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_ref.fused.dropout import draw
from lora_ref.fused.once import once
from lora_ref.fused.orders import Need
from lora_ref.fused.precision import as_written, cast, kept, region
from lora_ref.fused.products import Scaling, flat
from lora_ref.fused.single import check_frozen
from lora_ref.fused.stack import Projection, Stack


def project(x: Tensor, *projections: Projection, dropout: float = 0.0) -> tuple[Tensor, ...]:
    """x (..., in) -> for each projection y (..., out) = x Wᵀ + bias + s (x Aᵀ) Bᵀ.

    ``dropout`` acts on the input of A alone. Dtypes and autocast as in ``lora_ref.fused.linear``.

    Raises:
        LoraError: a W or a bias asks for a gradient.
    """
    for each in projections:
        check_frozen(each.w, each.bias)
    scalings = tuple(each.s for each in projections)
    y: tuple[Tensor, ...] = _Shared.apply(x, dropout, region(x), scalings, *tensors_of(projections))  # type: ignore[no-untyped-call]
    return y


def tensors_of(projections: Sequence[Projection]) -> list[Tensor | None]:
    """w, bias, a, b of each: what autograd must see one by one."""
    return [tensor for each in projections for tensor in each[:4]]


def projections_of(tensors: Sequence[Any], scalings: Sequence[Scaling]) -> list[Projection]:
    fours = (tensors[4 * nth : 4 * nth + 4] for nth in range(len(scalings)))
    return [Projection(w, bias, a, b, s) for (w, bias, a, b), s in zip(fours, scalings, strict=True)]


def as_inputs(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """dA, dB of each projection as the gradients of its w, bias, a, b."""
    pairs = zip(gradients[::2], gradients[1::2], strict=True)
    return [gradient for da, db in pairs for gradient in (None, None, da, db)]


def needed(of_x: bool, of_tensors: Sequence[bool]) -> Need:  # noqa: FBT001 (as autograd has it)
    return Need(of_x, any(of_tensors[2::4]), any(of_tensors[3::4]))


class _Shared(torch.autograd.Function):
    @staticmethod
    @as_written
    def forward(
        ctx: Any, x: Tensor, dropout: float, low: torch.dtype | None, scalings: tuple[Scaling, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        need, x_low = needed(ctx.needs_input_grad[0], ctx.needs_input_grad[4:]), cast(x, low)
        mask = draw(flat(x_low), dropout) if dropout else None
        outputs, h = Stack.of(projections_of(tensors, scalings), low, dropout).forward(x_low, mask)
        ctx.save_for_backward(kept(x, x_low) if need.a else None, h if need.b else None, mask, *tensors)
        ctx.known = need, dropout, low, scalings, x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    @once
    @as_written
    def backward(ctx: Any, *d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, h, mask, *tensors = ctx.saved_tensors
        need, dropout, low, scalings, shape, dtype = ctx.known
        stack = Stack.of(projections_of(tensors, scalings), low, dropout)
        dx, gradients = stack.backward(d_out, x, h, mask, need)
        dx = None if dx is None else cast(dx, dtype).view(shape)
        return dx, None, None, None, *as_inputs(gradients)
