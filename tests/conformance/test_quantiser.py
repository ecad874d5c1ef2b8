"""The quantiser, its torch module, and the reference over it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conformance.quantiser import BLOCK, dequantise, largest, quantise
from conformance.torch_quantised import QuantisedLinear
from lora_ref.errors import LoraError
from lora_ref.layers import LoraLayer
from lora_ref.model import attach
from lora_ref.spec import LoraSpec

SHAPES = [(3, 4), (5, 7), (1, 1), (2, 9)]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_on_the_grid_come_back_and_others_move_by_half_a_step(bits: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    grid = rng.integers(-largest(bits), largest(bits) + 1, shape).astype(np.float32)
    grid[:, ::BLOCK] = largest(bits)  # every block reaches the largest integer, so that its scale is 1
    assert np.array_equal(dequantise(quantise(grid, bits)), grid)
    w = rng.standard_normal(shape).astype(np.float32)
    packed = quantise(w, bits)
    step = np.repeat(packed.scales, BLOCK, axis=1)[:, : shape[1]]
    assert (np.abs(dequantise(packed) - w) <= step * (0.5 + largest(bits) * 2.0**-23)).all()


def test_zero_blocks_stay_zero_and_other_bits_are_refused() -> None:
    assert not dequantise(quantise(np.zeros((2, 5)), 4)).any()
    with pytest.raises(ValueError, match="4 or 8"):
        quantise(np.zeros((2, 5)), 3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_torch_module_unpacks_the_same_bits(bits: int, shape: tuple[int, int]) -> None:
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    base = QuantisedLinear(w, None, bits)
    assert np.array_equal(base.dequantized_weight().numpy(), dequantise(quantise(w, bits)))
    assert not base.weight.is_floating_point()
    x = torch.randn(2, shape[1])
    assert torch.equal(base(x), x @ base.dequantized_weight().T)


def test_the_reference_refuses_to_merge_and_exports_a_wide_layer() -> None:
    torch.manual_seed(0)
    w, bias = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32), np.ones(5, np.float32)
    layer = LoraLayer(QuantisedLinear(w, bias, 4))
    layer.add("default", LoraSpec(r=2, alpha=3.0))
    layer.adapters.delta("default").b.data.normal_()
    with pytest.raises(LoraError, match="export instead"):
        layer.merge()
    assert not layer.merged
    plain = layer.export()
    assert type(plain) is nn.Linear
    assert torch.equal(plain.weight, layer.effective_weight())
    assert plain.bias.tolist() == bias.tolist()
    assert not plain.weight.requires_grad


def test_targets_find_a_quantised_layer_and_unloading_makes_it_wide() -> None:
    model = nn.Sequential(QuantisedLinear(np.eye(4, dtype=np.float32), None, 8), nn.ReLU())
    lora = attach(model, LoraSpec(r=2, alpha=3.0, targets=("0",)))
    assert lora.deltas("default")["0"].a.dtype is torch.float32
    assert type(lora.unload(merge=True)[0]) is nn.Linear
