"""Combinations: whole models, and what is refused. That they are right sums is judged by the suite's own invariants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_ref.combine import combine, combine_in_model, weighted
from lora_ref.errors import LoraError
from lora_ref.layers import LoraLayer
from lora_ref.model import attach
from lora_ref.spec import LoraSpec


def filled(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    return model


def test_a_combination_in_a_model_covers_the_targets_of_its_parts() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    lora = attach(model, LoraSpec(2, 4.0, targets=("0",)))
    attach(model, LoraSpec(3, 1.5, targets=("0", "1")), "second")
    filled(model)
    combine_in_model(lora, "mix", {"default": 2.0, "second": -1.0})
    assert {path: delta.spec.r for path, delta in lora.deltas("mix").items()} == {"0": 5, "1": 3}
    assert lora.active == ("default",)
    own, second, mix = (lora.deltas(name) for name in ("default", "second", "mix"))
    assert torch.equal(mix["0"].weight(), 2.0 * own["0"].weight() - second["0"].weight())
    assert torch.equal(mix["1"].weight(), -second["1"].weight())


def test_a_name_that_is_given_twice_counts_with_the_sum_of_its_weights() -> None:
    assert weighted(["a", "b", "a"], [1.0, 2.0, 0.5]) == {"a": 1.5, "b": 2.0}


@pytest.mark.parametrize("parts", [{}, {"unknown": 1.0}])
def test_parts_that_are_not_there_are_refused(parts: dict[str, float]) -> None:
    layer = LoraLayer(nn.Linear(2, 2))
    layer.add("default", LoraSpec(1, 2.0))
    with pytest.raises(LoraError):
        combine(layer.base, layer.adapters, "mix", parts)
    assert list(layer.adapters) == ["default"]


def test_a_taken_name_is_refused() -> None:
    layer = LoraLayer(nn.Linear(2, 2))
    layer.add("default", LoraSpec(1, 2.0))
    with pytest.raises(LoraError, match="already"):
        combine(layer.base, layer.adapters, "default", {"default": 1.0})


def test_fused_parts_and_dora_are_refused() -> None:
    fused = LoraLayer(nn.Linear(2, 4))
    fused.add("default", LoraSpec(1, 2.0), parts=(2, 2), enabled=(True, False))
    dora = LoraLayer(nn.Linear(2, 4))
    dora.add("default", LoraSpec(1, 2.0, dora=True))
    for layer in (fused, dora):
        with pytest.raises(LoraError):
            combine(layer.base, layer.adapters, "mix", {"default": 1.0})
