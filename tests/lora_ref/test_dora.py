"""DoRA: the closed form against autograd, exact small cases, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_ref.combine import combine
from lora_ref.dora import DoraOracle
from lora_ref.errors import LoraError
from lora_ref.geometry import Linear
from lora_ref.layers import LoraLayer
from lora_ref.model import attach
from lora_ref.oracle import Numerics
from lora_ref.spec import LoraSpec
from lora_ref.store import load, save

SPEC = LoraSpec(r=3, alpha=2.0, dora=True)
X = torch.tensor([[1.0, 2.0]])


def stirred(base: nn.Module, *, dtype: torch.dtype = torch.float64) -> LoraLayer:
    torch.manual_seed(0)
    layer = LoraLayer(base.to(dtype))
    layer.add("default", SPEC)
    delta = layer.adapters.delta("default")
    with torch.no_grad():
        delta.b.normal_()
        delta.m.mul_(torch.rand_like(delta.m) + 0.5)
    return layer


def linear(w: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    base = nn.Linear(len(w[0]), len(w), bias=bias is not None)
    base.weight.data = torch.tensor(w)
    if bias is not None:
        base.bias.data = torch.tensor(bias)
    return base


def test_a_row_of_norm_five_and_a_magnitude_of_ten_double_its_product_and_not_its_bias() -> None:
    layer = LoraLayer(linear([[3.0, 4.0], [0.0, 2.0]], [1.0, 1.0]))
    layer.add("default", SPEC)
    delta = layer.adapters.delta("default")
    assert delta.m.tolist() == [5.0, 2.0]
    assert layer(X).tolist() == [[12.0, 5.0]]
    delta.m.data[0] = 10.0
    assert layer(X).tolist() == [[23.0, 5.0]]
    layer.merge()
    assert layer.merged_weight is not None
    assert layer.merged_weight.tolist() == [[6.0, 8.0], [0.0, 2.0]]
    layer.unmerge()
    assert layer.base.weight.tolist() == [[3.0, 4.0], [0.0, 2.0]]


def test_a_zero_row_stays_finite_and_learns() -> None:
    layer = LoraLayer(linear([[0.0, 0.0]]))
    layer.add("default", SPEC)
    delta = layer.adapters.delta("default")
    layer(X).sum().backward()
    assert delta.m.grad is not None
    assert delta.b.grad is not None
    assert delta.m.grad.tolist() == [0.0]
    assert delta.b.grad.isfinite().all()
    assert delta.b.grad.any()
    delta.b.data -= delta.b.grad
    layer(X).sum().backward()
    assert delta.m.grad.isfinite().all()
    assert delta.m.grad.any()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (6, 6)])
def test_closed_form_is_what_autograd_gives(shape: tuple[int, int], *, transposed: bool) -> None:
    """In float64, to within the bounds that the closed form itself has there."""
    rng = np.random.default_rng(0)
    n_in, n_out = shape
    w, a, b = rng.standard_normal((n_out, n_in)), rng.standard_normal((3, n_in)), rng.standard_normal((n_out, 3))
    x, dy, m, bias = (rng.standard_normal(size) for size in ((4, n_in), (4, n_out), n_out, n_out))
    leaves = [torch.tensor(v, requires_grad=True) for v in (x, a, b, m)]
    xs, as_, bs, ms = leaves
    v = torch.tensor(w) + SPEC.scaling * bs @ as_
    y = ms / v.detach().norm(dim=1) * (xs @ v.T) + torch.tensor(bias)
    y.backward(torch.tensor(dy))
    stored = w.T if transposed else w
    numerics = {"base_dtype": "float64", "adapter_dtype": "float64", "numerics": Numerics(accumulate="float64")}
    oracle = DoraOracle(Linear(n_in, n_out, transposed), SPEC, stored, bias, a, b, m=m, **numerics)
    expected = oracle.gradients(x, dy)
    found = [y.detach(), *(leaf.grad for leaf in leaves)]
    for got, wanted in zip(found, (oracle.forward(x), expected.x, expected.a, expected.b, expected.m), strict=True):
        assert got is not None
        assert wanted is not None
        assert (np.abs(got.numpy() - wanted.value) <= wanted.bound).all()


def test_a_second_plain_adapter_adds_its_delta_beside_a_merged_dora_one() -> None:
    layer = stirred(nn.Linear(4, 6))
    layer.add("second", LoraSpec(r=2, alpha=3.0))
    layer.adapters.delta("second").b.data.normal_()
    layer.eval().activate("second")
    x = torch.randn(3, 4, dtype=torch.float64)
    both = layer(x) - layer.base(x)
    layer.activate("default", "second")
    both += layer.adapters.delta("default").change(x, layer.base(x))
    unmerged = layer(x)
    layer.merge("second")
    room = 64 * torch.finfo(torch.float64).eps * (unmerged.abs() + both.abs()).max()
    assert (unmerged - layer.base(x) - both).abs().max() <= room
    assert (layer(x) - unmerged).abs().max() <= room


def test_files_hold_the_magnitude_as_peft_names_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6)).double()
    fresh = nn.Sequential(nn.Linear(4, 6)).double()
    fresh.load_state_dict(model.state_dict())
    lora = attach(model, LoraSpec(r=3, alpha=2.0, dora=True, targets=("0",)))
    delta = lora.deltas("default")["0"]
    delta.m.data.mul_(1.5)
    delta.b.data.normal_()
    save(lora, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(tensors["base_model.model.0.lora_magnitude_vector"], delta.m)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["use_dora"] is True
    x = torch.randn(3, 4, dtype=torch.float64)
    wanted = model(x)
    assert torch.equal(load(fresh, tmp_path / "adapter").module(x), wanted)


@pytest.mark.parametrize("base", [nn.Conv1d(2, 3, 1), nn.Embedding(5, 3)])
def test_only_linear_layers(base: nn.Module) -> None:
    with pytest.raises(LoraError, match="for whole linear layers"):
        LoraLayer(base).add("default", SPEC)


def test_no_combination() -> None:
    layer = stirred(nn.Linear(4, 6))
    with pytest.raises(LoraError, match="DoRA scales W itself"):
        combine(layer.base, layer.adapters, "both", {"default": 1.0})
