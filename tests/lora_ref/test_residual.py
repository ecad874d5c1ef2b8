"""Residual initialisations: what the adapter starts as, what the base keeps, and what a file says."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lora_ref.combine import combine
from lora_ref.errors import LoraError
from lora_ref.layers import LoraLayer
from lora_ref.model import attach
from lora_ref.residual import departures
from lora_ref.spec import LoraSpec
from lora_ref.store import load, save

INITS = ["pissa", "olora"]


def layer_of(init: str, w: torch.Tensor, **spec: int) -> LoraLayer:
    base = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
    base.weight.data = w.clone()
    layer = LoraLayer(base)
    layer.add("default", LoraSpec(**{"r": 2, "alpha": 3.0, "init": init, **spec}))
    return layer


@pytest.mark.parametrize("init", INITS)
def test_a_fresh_adapter_is_the_base_bit_for_bit_and_leaves_it_alone(init: str) -> None:
    torch.manual_seed(0)
    w, x = torch.randn(7, 5), torch.randn(3, 5)
    layer = layer_of(init, w)
    wanted = x @ w.T
    assert torch.equal(layer(x), wanted)
    assert layer.adapters.delta("default").b.any()
    layer.merge()
    assert torch.equal(layer.merged_weight, w)
    layer.unmerge()
    layer.adapters.delta("default").a.data.normal_()
    layer.disable()
    assert torch.equal(layer(x), wanted)
    assert torch.equal(layer.base.weight, w)


def test_of_a_diagonal_weight_pissa_takes_the_largest_entries() -> None:
    layer = layer_of("pissa", torch.diag(torch.tensor([1.0, 9.0, 4.0])))
    delta = layer.adapters.delta("default")
    assert torch.allclose(delta.scaling * delta.b @ delta.a, torch.diag(torch.tensor([0.0, 9.0, 4.0])), atol=1e-6)


@pytest.mark.parametrize("init", INITS)
def test_departures_hold_for_the_right_factors_and_show_others(init: str) -> None:
    torch.manual_seed(0)
    w = torch.randn(7, 5)
    delta = layer_of(init, w).adapters.delta("default")
    a, b, w64 = delta.a.detach().double().numpy(), delta.b.detach().double().numpy(), w.double().numpy()

    def wrong(a: np.ndarray, b: np.ndarray) -> list[str]:
        found = departures(init, w64, a, b, delta.scaling, "float32")
        return [name for name, (got, fit) in found.items() if abs(got - fit.value[0]) > fit.bound[0]]

    assert not wrong(a, b)
    assert wrong(a * 1.001, b)
    assert wrong(a[::-1], b)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("rslora", [False, True])
def test_saved_it_is_a_plain_adapter_of_the_original_base(init: str, tmp_path: Path, *, rslora: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 5)).double()
    fresh = copy.deepcopy(model)
    spec = LoraSpec(
        r=2,
        alpha=3.0,
        rslora=rslora,
        targets=("0", "1", "2"),
        rank_pattern={"1": 3},
        alpha_pattern={"2": 5.0},
        init=init,
    )
    lora = attach(model, spec)
    for delta in lora.deltas("default").values():
        delta.a.data.normal_()
    save(lora, tmp_path / "adapter")
    back = load(fresh, tmp_path / "adapter")
    assert back.spec("default").init == "default"
    eps = torch.finfo(torch.float64).eps
    for path, delta in lora.deltas("default").items():
        plain, size = back.deltas("default")[path], (delta.factors()[1].abs() @ delta.factors()[0].abs()).max()
        assert plain.spec.r == 2 * delta.spec.r
        assert (plain.weight() - delta.weight()).abs().max() <= 16 * eps * delta.scaling * size


def test_a_combination_takes_the_first_values_along() -> None:
    torch.manual_seed(0)
    layer = layer_of("pissa", torch.randn(7, 5).double())
    delta = layer.adapters.delta("default")
    delta.a.data.normal_()
    combine(layer.base, layer.adapters, "twice", {"default": 2.0})
    both, room = layer.adapters.delta("twice").weight(), 64 * torch.finfo(torch.float64).eps
    assert (both - 2 * delta.weight()).abs().max() <= room * (delta.b.abs() @ delta.a.abs()).max()


def test_copies_and_state_dicts_hold_the_first_values() -> None:
    layer = layer_of("olora", torch.randn(4, 3))
    assert {"adapters.default.a0", "adapters.default.b0"} <= layer.state_dict().keys()
    layer.adapters.delta("default").a.data.zero_()
    x = torch.randn(2, 3)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("init", INITS)
def test_a_rank_that_the_weight_has_not_is_refused(init: str) -> None:
    with pytest.raises(LoraError, match="r = 4 is too large"):
        layer_of(init, torch.randn(7, 3), r=4)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LoraError, match="init must be"):
        LoraSpec(r=2, alpha=1.0, init="other")
