"""A whole feed-forward block with LoRA as one autograd function: y = down(act(gate(x)) * up(x)), or down(act(up(x))).

Between forward and backward it keeps x, the r columns of each adapter, and what the nonlinearity needs: gate(x) and
up(x). Their product, the input of ``down``, is formed again in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from lora_ref.fused.dropout import draw
from lora_ref.fused.once import once
from lora_ref.fused.precision import as_written, cast, kept, region
from lora_ref.fused.products import Scaling, flat
from lora_ref.fused.shared import as_inputs, needed, projections_of, tensors_of
from lora_ref.fused.single import check_frozen
from lora_ref.fused.stack import Projection, Stack

Activation = Literal["silu", "gelu", "gelu_tanh"]
aten = torch.ops.aten
_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
_BACKWARD: dict[str, Callable[..., Tensor]] = {  # of the gradient, and of what act was given
    "silu": aten.silu_backward.grad_input,
    "gelu": aten.gelu_backward.grad_input,
    "gelu_tanh": partial(aten.gelu_backward.grad_input, approximate="tanh"),
}


def mlp(
    x: Tensor,
    gate: Projection | None,
    up: Projection,
    down: Projection,
    activation: Activation = "silu",
    *,
    dropout: float = 0.0,
) -> Tensor:
    """x (..., in) -> y (..., out): SwiGLU with "silu", GeGLU with "gelu"; without ``gate`` the block of a BERT or GPT.

    ``dropout`` acts on the inputs of A alone: those of gate and up see the same dropped x.

    Raises:
        LoraError: a W or a bias asks for a gradient.
    """
    projections = [*([gate] if gate else []), up, down]
    for each in projections:
        check_frozen(each.w, each.bias)
    scalings = tuple(each.s for each in projections)
    y: Tensor = _FeedForward.apply(x, activation, dropout, region(x), scalings, *tensors_of(projections))  # type: ignore[no-untyped-call]
    return y


class _FeedForward(torch.autograd.Function):
    @staticmethod
    @as_written
    def forward(
        ctx: Any,
        x: Tensor,
        activation: str,
        dropout: float,
        low: torch.dtype | None,
        scalings: tuple[Scaling, ...],
        *tensors: Tensor,
    ) -> Tensor:
        *first, down = projections_of(tensors, scalings)
        need = needed(ctx.needs_input_grad[0], ctx.needs_input_grad[5:-4])
        need_down = needed(True, ctx.needs_input_grad[-4:])  # noqa: FBT003 (what comes before is trained too)
        mask = mask_down = None
        x_low = cast(x, low)
        if dropout:
            mask = draw(flat(x_low), dropout)
        inner, h = Stack.of(first, low, dropout).forward(x_low, mask)  # (..., inner) each
        z = _FORWARD[activation](inner[0])
        if len(inner) > 1:
            z.mul_(inner[1])
        if dropout:
            mask_down = draw(flat(z), dropout)
        (y,), h_down = Stack.of([down], low, dropout).forward(z, mask_down)
        own = (kept(x, x_low) if need.a else None, h if need.b else None, h_down if need_down.b else None)
        ctx.save_for_backward(*own, mask, mask_down, *inner, *tensors)
        ctx.known = need, need_down, activation, dropout, low, scalings, x.shape, x.dtype
        return y

    @staticmethod
    @once
    @as_written
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        need, need_down, activation, dropout, low, scalings, shape, dtype = ctx.known
        x, h, h_down, mask, mask_down, *rest = ctx.saved_tensors
        inner, tensors = rest[: len(scalings) - 1], rest[len(scalings) - 1 :]
        *first, down = projections_of(tensors, scalings)
        acted = _FORWARD[activation](inner[0])  # (..., inner)
        z = acted * inner[1] if len(inner) > 1 else acted
        dz, of_down = Stack.of([down], low, dropout).backward([dy], z, h_down, mask_down, need_down)
        del z
        assert dz is not None
        d_inner = [dz := dz.view(acted.shape)]
        if len(inner) > 1:
            d_inner.append(acted.mul_(dz))
            dz.mul_(inner[1])
        _BACKWARD[activation](dz, inner[0], grad_input=dz)
        dx, of_first = Stack.of(first, low, dropout).backward(d_inner, x, h, mask, need)
        dx = None if dx is None else cast(dx, dtype).view(shape)
        return dx, None, None, None, None, *as_inputs([*of_first, *of_down])
