"""PEFT's LoRA linear layer, computed by the fused functions wherever they give what PEFT's own forward gives.

The layer's state is read at each call, so that whatever PEFT changes (the active adapters, a merge, disabling, scaling,
dropout) takes effect at once. Written against peft 0.21; importing this imports peft.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_ref.fused.products import stacked
from lora_ref.fused.routed import batch
from lora_ref.fused.served import Served, is_bare, is_frozen_product, is_plain
from lora_ref.fused.stack import Projection


class FusedLinear(Linear):  # type: ignore[misc]
    """What ``accelerate`` makes of a ``peft.tuners.lora.layer.Linear``: the same object with another forward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        routed = kwargs.get("adapter_names")
        asked = args or any(value is not None for key, value in kwargs.items() if key != "adapter_names")
        if not asked and routed is None and (served := self.served()) is not None:
            return served(x)
        if not asked and routed is not None:
            names = present(self, dict.fromkeys(routed))
            if not obstacle(self, names, together=False):
                self._check_forward_args(x, adapter_names=routed)
                index = [names.index(name) if name in names else -1 for name in routed]
                return batch(x, *self._base(), [self._adapter(name) for name in names], index)
        y: Tensor = super().forward(x, *args, **kwargs)
        return y

    def served(self) -> Served | None:
        """What the fused functions are to compute, or None where they cannot."""
        names = present(self, self.active_adapters)
        if obstacle(self, names):
            return None
        w, bias = self._base()
        projection = Projection(w, bias, *stacked([self._adapter(name) for name in names]))
        m = self.lora_magnitude_vector[names[0]].weight if names[0] in self.lora_variant else None
        return Served(projection, _dropout(self, names[0]), m)

    def _base(self) -> tuple[Tensor, Tensor | None]:
        """W (out, in) and the bias."""
        base = self.base_layer
        return base.weight.t() if isinstance(base, Conv1D) else base.weight, base.bias

    def _adapter(self, name: str) -> tuple[Tensor, Tensor, float]:
        return self.lora_A[name].weight, self.lora_B[name].weight, float(self.scaling[name])


def present(layer: Linear, names: Iterable[str]) -> list[str]:
    """Those that the layer has; PEFT passes over the others."""
    return [name for name in names if name in layer.lora_A]


def obstacle(layer: Linear, names: Sequence[str], *, together: bool = True) -> str:
    """Why PEFT's own forward must serve these adapters; empty where the fused functions can.

    ``together``: they act on every row; otherwise each on rows of its own.
    """
    return next(_obstacles(layer, names, together), "")


def _obstacles(layer: Linear, names: Sequence[str], together: bool) -> Iterator[str]:  # noqa: FBT001 (see above)
    """Only the first is asked for, so that each line may rely on those before it."""
    base = layer.base_layer
    if type(base) not in {nn.Linear, Conv1D}:
        yield f"its base is a {type(base).__name__}"
    if not is_plain(base.weight):
        yield f"its weight is a {type(base.weight).__name__} of {base.weight.dtype}"
    if not is_frozen_product(base):
        yield "its base has hooks, a forward of its own, or parameters that train"
    if layer.merged:
        yield "it is merged"
    if layer.disable_adapters:
        yield "its adapters are disabled"
    if not layer.cast_input_dtype_enabled:
        yield "its inputs are not to be cast"
    if together and not names:
        yield "no adapter of it is active"
    for name in names:
        yield from _of_adapter(layer, name, together and len(names) == 1)


def _of_adapter(layer: Linear, name: str, alone: bool) -> Iterator[str]:  # noqa: FBT001 (see above)
    parts = (layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name])
    if not all(type(part) in {nn.Linear, nn.Dropout, nn.Identity} for part in parts):
        yield f"adapter {name!r} is made of {', '.join(type(part).__name__ for part in parts)}"
    if not all(is_bare(part) for part in parts):
        yield f"adapter {name!r} has hooks, or a forward of its own"
    if parts[1].bias is not None:
        yield f"adapter {name!r} has a bias (lora_bias)"
    variant, dropped = layer.lora_variant.get(name), _dropout(layer, name) > 0
    if dropped and not alone:
        yield "several adapters act at once, and each has a dropout mask of its own"
    if variant is not None:
        if type(variant) is not DoraLinearVariant or layer.ephemeral_gpu_offload:
            yield f"adapter {name!r} is a variant: {type(variant).__name__}"
        if dropped:
            yield f"adapter {name!r} is DoRA, and PEFT drops the input of its base too"
        if not alone:
            yield f"adapter {name!r} is DoRA, and others act beside it"


def _dropout(layer: Linear, name: str) -> float:
    dropout = layer.lora_dropout[name]
    return dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
