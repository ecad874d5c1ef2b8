"""Stacks of experts: each row by its own expert, gradients of experts without rows, and what is refused."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN201

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)

from lora_ref.combine import combine
from lora_ref.delta import make_delta
from lora_ref.errors import LoraError
from lora_ref.expert_delta import ExpertDelta
from lora_ref.expert_stack import ExpertStack, by_expert
from lora_ref.experts import Experts
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec

E, K, N, R = 4, 5, 3, 2
SPEC = LoraSpec(R, 3.0)
INDEX = torch.tensor([2, 0, 2, 2, 0, 3])  # nothing for expert 1


def stack():
    torch.manual_seed(0)
    base = ExpertStack(E, K, N).double()
    base.index = INDEX
    return base


def layer():
    wrapped = LoraLayer(stack())
    wrapped.add("default", SPEC)
    torch.nn.init.normal_(wrapped.adapters["default"].b)
    return wrapped


def test_each_row_meets_its_own_expert():
    wrapped = layer()
    w, delta, x = wrapped.base.weight, wrapped.adapters["default"], torch.randn(2, 3, K).double()
    rows = [
        F.linear(row, w[e] + SPEC.scaling * delta.b[e] @ delta.a[e])
        for row, e in zip(x.reshape(-1, K), INDEX, strict=True)
    ]
    torch.testing.assert_close(wrapped(x), torch.stack(rows).reshape(2, 3, N))
    wrapped.eval().merge()
    torch.testing.assert_close(wrapped(x), torch.stack(rows).reshape(2, 3, N))


def test_an_expert_without_rows_has_zero_gradients():
    wrapped = layer()
    wrapped(torch.randn(6, K).double()).sum().backward()
    delta = wrapped.adapters["default"]
    for factor in (delta.a, delta.b):
        assert [bool(grad.any()) for grad in factor.grad] == [True, False, True, True]
    assert wrapped.base.weight.grad is None


def test_no_rows_at_all():
    wrapped = layer()
    wrapped.base.index = INDEX[:0]
    wrapped(torch.zeros(0, K).double()).sum().backward()
    assert not wrapped.adapters["default"].a.grad.any()


@pytest.mark.parametrize("index", [[0, 1], [0, 1, 4]])
def test_an_index_that_does_not_fit_is_refused(index):
    with pytest.raises((RuntimeError, ValueError)):
        by_expert(torch.zeros(3, K), torch.tensor(index), torch.zeros(E, N, K))
    with pytest.raises((IndexError, ValueError)):
        Experts(K, N, E, tuple(index)).rows(np.zeros((3, K)))


def test_initial_values_come_from_the_inputs_of_one_expert():
    delta = make_delta(ExpertStack(50, 100, 7), LoraSpec(8, 16.0))
    assert isinstance(delta, ExpertDelta)
    assert delta.a.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert not delta.b.any()


def test_a_copy_reads_its_own_index():
    wrapped = layer()
    twin, x = copy.deepcopy(wrapped), torch.randn(6, K).double()
    twin.base.index = INDEX.flip(0)
    torch.testing.assert_close(twin(x.flip(0)), wrapped(x).flip(0))


def test_packed_as_peft_packs_them():
    delta = layer().adapters["default"]
    a, b = delta.factors()  # (E·r, in), (out, r·E)
    product = torch.einsum("ore,eri->eoi", b.reshape(N, R, E), a.reshape(E, R, K))  # as peft's ParamWrapper has it
    torch.testing.assert_close(SPEC.scaling * product, delta.weight().double())
    assert all(torch.equal(one, own) for one, own in zip(delta.unpacked(a, b), (delta.a, delta.b), strict=True))
    with pytest.raises(LoraError, match=r"B of the experts has shape \(3, 4\), not \(3, 8\)"):
        delta.unpacked(a, b[:, :4])


def test_combinations_are_refused():
    wrapped = layer()
    with pytest.raises(LoraError, match="experts cannot be combined yet"):
        combine(wrapped.base, wrapped.adapters, "sum", {"default": 1.0})
