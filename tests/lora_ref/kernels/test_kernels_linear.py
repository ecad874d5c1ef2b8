"""The fused linear against the closed form in float64: integers, so every bit must be right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import EXAMPLES, MANIFEST, every_dtype, exact_cases
from kernel_judges import judge_linear

from conformance.cases import Case
from conformance.judge import Judge
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref.fused.kernels import lora_linear


@every_dtype
def test_every_bit_is_right_and_no_neighbour_is_read(device: str, dtype: str, adapter: str) -> None:
    @EXAMPLES
    @given(exact_cases(dtype, adapter), st.booleans())
    def check(case: Case, reverse: bool) -> None:  # noqa: FBT001
        judge_linear(case, device, reverse=reverse)

    check()


@every_dtype
def test_what_is_rounded_is_rounded_to_the_nearest(device: str, dtype: str, adapter: str) -> None:
    """In short sums little else is lost: a bfloat16 that is cut off, or a TensorFloat-32, is out of the bounds."""
    for seed in range(3):
        case = Case(3, 33, 1, 1.5, (40,), tier="bounded", dtype=dtype, adapter_dtype=adapter, bias=True, seed=seed)
        judge_linear(case, device)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 2, 1)])
def test_leading_dimensions_stay(device: str, lead: tuple[int, ...]) -> None:
    judge_linear(Case(5, 3, 3, 6.0, lead, bias=True), device)


def test_a_broadcast_gradient_is_what_a_sum_sends_back(device: str) -> None:
    case = Case(5, 17, 3, 6.0, (20,))
    at = case.arrays
    x, w, a, b = (to_torch(v).to(device) for v in (at.x, at.w, at.a, at.b))
    a.requires_grad_()
    lora_linear(x, w, None, a, b, case.spec.scaling).sum().backward()  # all strides of dy are 0
    expected = case.oracle(MANIFEST).gradients(at.x, np.ones_like(at.dy))
    Judge()("dA", to_numpy(a.grad), expected.a, exact=True)


def test_weight_and_bias_have_gradients_where_they_are_asked_for(device: str) -> None:
    at = Case(5, 4, 2, 4.0, (3,), bias=True).arrays
    x, w, bias, a, b, dy = (to_torch(v).to(device) for v in (at.x, at.w, at.bias, at.a, at.b, at.dy))
    lora_linear(x, w.requires_grad_(), bias.requires_grad_(), a, b, 2.0).backward(dy)
    assert torch.equal(w.grad, dy.T @ x)
    assert torch.equal(bias.grad, dy.sum(0))
    assert a.grad is None


@pytest.mark.parametrize("needs", ["x", "a", "b"])
def test_each_gradient_comes_alone(device: str, needs: str) -> None:
    """What it does not need is not even kept."""
    case = Case(5, 4, 2, 4.0, (3,))
    at = case.arrays
    tensors = {name: to_torch(getattr(at, name)).to(device) for name in ("x", "w", "a", "b", "dy")}
    tensors[needs].requires_grad_()
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = lora_linear(tensors["x"], tensors["w"], None, tensors["a"], tensors["b"], case.spec.scaling)
    y.backward(tensors["dy"])
    oracle = case.oracle(MANIFEST).gradients(at.x, at.dy)
    Judge()(f"d{needs}", to_numpy(tensors[needs].grad), getattr(oracle, needs), exact=True)
    assert [tuple(tensor.shape) for tensor in kept] == {
        "x": [tuple(tensors[name].shape) for name in ("w", "a", "b")],
        "a": [tuple(tensors[name].shape) for name in ("x", "b")],
        "b": [(3, 2)],  # h
    }[needs]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_no_rows(device: str, dtype: str) -> None:
    case = Case(5, 4, 2, 4.0, (0,), dtype=dtype)
    judge_linear(case, device)
    judge_linear(replace(case, lead=(2, 0)), device)


def test_more_blocks_of_rows_than_walk_together(device: str) -> None:
    judge_linear(Case(3, 70, 1, 2.0, (600,)), device)


@pytest.mark.parametrize("axis", [0, 1])
def test_offsets_beyond_32_bits(device: str, axis: int) -> None:
    """x ends 2^31 elements behind its beginning; only the pages that are touched take memory."""
    case = Case(5, 4, 2, 4.0, (5,), dtype="float16")
    at, step = case.arrays, 2**29
    memory = torch.empty(4 * step + 5, dtype=torch.float16, device=device)
    x = memory.as_strided((5, 5), (1, step) if axis else (step, 1)).copy_(to_torch(at.x))
    w, a, b, dy = (to_torch(v).to(device) for v in (at.w, at.a, at.b, at.dy))
    y = lora_linear(x, w, None, a.requires_grad_(), b, case.spec.scaling)
    y.backward(dy)
    oracle = case.oracle(MANIFEST)
    Judge()("y", to_numpy(y), oracle.forward(at.x), exact=True)
    Judge()("dA", to_numpy(a.grad), oracle.gradients(at.x, at.dy).a, exact=True)
