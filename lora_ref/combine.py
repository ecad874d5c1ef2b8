"""A new adapter whose delta is a weighted sum of the deltas of others: exact, as its rank is the sum of their ranks.

Σ w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] · [A_1; A_2; ...], and alpha = r makes the new scaling 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import nn

from lora_ref.delta import Delta, FusedDelta, make_delta
from lora_ref.errors import LoraError
from lora_ref.expert_delta import ExpertDelta
from lora_ref.layers import Adapters
from lora_ref.model import Adapted
from lora_ref.spec import LoraSpec


def combine(base: nn.Module, adapters: Adapters, name: str, parts: Mapping[str, float]) -> None:
    """Add the adapter ``name`` to those of ``base``: Σ weight · delta over ``parts``, as they are now; not yet active.

    Raises:
        LoraError: no parts, an unknown one, a name that is taken, fused projections, experts, DoRA. Nothing is changed.
    """
    new, r = _combined(base, adapters, name, parts)
    adapters.put(name, new, LoraSpec(r=r, alpha=float(r)), trainable=True)


def _combined(base: nn.Module, adapters: Adapters, name: str, parts: Mapping[str, float]) -> tuple[Delta, int]:
    """The branch, and its rank."""
    if not parts:
        raise LoraError(f"adapter {name!r} would be a combination of none")
    adapters.check_new(name)
    deltas = [adapters.delta(part) for part in parts]
    if any(isinstance(delta, FusedDelta) for delta in deltas):
        raise LoraError("the parts of a fused projection cannot be combined yet; combine adapters of plain ones")
    if any(isinstance(delta, ExpertDelta) for delta in deltas):
        raise LoraError("adapters of a stack of experts cannot be combined yet; combine those of plain layers")
    if any(delta.reads_base for delta in deltas):
        raise LoraError("DoRA scales W itself, so that a sum of such deltas is no product of two factors")
    r = sum(delta.factors()[0].shape[0] for delta in deltas)
    dtype = reduce(torch.promote_types, (delta.a.dtype for delta in deltas))
    new = make_delta(base, LoraSpec(r=r, alpha=float(r)), dtype=dtype)
    with torch.no_grad():
        new.a.copy_(torch.cat([delta.factors()[0] for delta in deltas]))  # (Σr, in)
        scaled = [_scaled(delta, weight) for delta, weight in zip(deltas, parts.values(), strict=True)]
        new.b.copy_(torch.cat(scaled, dim=1))  # (out, Σr)
    return new, r


def combine_in_model(model: Adapted, name: str, parts: Mapping[str, float]) -> None:
    """The same in a whole model: a target that lacks some of the parts combines those that it has.

    Raises:
        LoraError: as above.
    """
    model.check_known(*parts)
    if not parts:
        raise LoraError(f"adapter {name!r} would be a combination of none")
    bases, found = model.bases(), model.adapters()
    own = {path: {part: weight for part, weight in parts.items() if part in found[path]} for path in found}
    new = {path: _combined(bases[path], found[path], name, own[path]) for path in found if own[path]}
    ranks = {path: r for path, (_, r) in new.items()}
    alphas = {path: float(r) for path, r in ranks.items()}
    spec = LoraSpec(1, 1.0, targets=tuple(new), rank_pattern=ranks, alpha_pattern=alphas)
    for path, (delta, _) in new.items():
        found[path].put(name, delta, spec, trainable=True)


def weighted(adapters: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Names and weights as one mapping; a name that is given twice counts with the sum of its weights."""
    parts: dict[str, float] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        parts[adapter] = parts.get(adapter, 0.0) + weight
    return parts


def _scaled(delta: Delta, weight: float) -> torch.Tensor:
    """weight · s · B (out, r), rounded once."""
    _, b = delta.factors()
    return weight * delta.scaling * b.to(torch.promote_types(b.dtype, torch.float32))
