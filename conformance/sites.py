"""A model judged where LoRA acts: what goes into and comes out of each adapted module, and the gradient that returns.

Between those modules everything is the same torch code with and without LoRA. So each site is judged on its own, from
the input that it really had, against the closed form and its derived bound; errors of a deep model never add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from conformance.contract import Array, Manifest, ModelHandle
from conformance.model_cases import ModelCase
from conformance.torch_arrays import to_numpy
from lora_ref.geometry import Linear
from lora_ref.oracle import Oracle


@dataclass
class Seen:
    """One call of one site: x (..., in), y (..., out) and the gradient of y, where there was one."""

    x: Array
    y: Array
    dy: Array | None = None


@contextmanager
def watching(handle: ModelHandle) -> Iterator[dict[str, Seen]]:
    """Record the last call of every site while the block runs."""
    seen: dict[str, Seen] = {}
    hooks = [site.register_forward_hook(_Watch(path, seen), with_kwargs=True) for path, site in handle.sites().items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    def __init__(self, path: str, seen: dict[str, Seen]) -> None:
        self.path, self.seen = path, seen

    def __call__(self, _site: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: torch.Tensor) -> None:
        (x,) = (*args, *kwargs.values())
        seen = self.seen[self.path] = Seen(to_numpy(x), to_numpy(y))
        if y.requires_grad:
            y.register_hook(lambda dy: setattr(seen, "dy", to_numpy(dy)))  # type: ignore[no-untyped-call]


def outputs(module: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """All real tensors that the model returns: logits, hidden states, a pooled state."""
    result = module(**inputs)
    return [value for value in result.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point()]


def backward(case: ModelCase, results: list[torch.Tensor]) -> None:
    """Backpropagate a random linear functional of everything that the model returns."""
    generator = torch.Generator().manual_seed(case.seed)
    torch.autograd.backward(results, [torch.randn(y.shape, generator=generator).to(y.dtype) for y in results])


def site_oracle(
    case: ModelCase, handle: ModelHandle, path: str, manifest: Manifest, adapter: str = "default"
) -> Oracle:
    """The closed form of one site: base weight from the pristine model, A and B from the handle."""
    a, b = (to_numpy(factor) for factor in handle.factors(path, adapter))
    return oracle_of(case, path, a, b, manifest)


def oracle_of(case: ModelCase, path: str, a: Array, b: Array, manifest: Manifest) -> Oracle:
    """The closed form of one site with these A (r, in) and B (out, r)."""
    base = case.loaded.module.get_submodule(path)
    weight, bias = base.weight, base.bias
    transposed = not isinstance(base, nn.Linear)
    n_in, n_out = weight.shape if transposed else weight.shape[::-1]
    return Oracle(
        Linear(n_in, n_out, transposed),
        case.spec.at(path),
        _wide(to_numpy(weight)),
        None if bias is None else _wide(to_numpy(bias)),
        _wide(a),
        _wide(b),
        base_dtype=case.dtype,
        adapter_dtype=a.dtype.name,
        numerics=manifest.numerics,
    )


def _wide(array: Array) -> Array:
    return array.astype("float64")
