"""Batches of many adapters: gradients, and what is kept. Forward values are judged by the suite's own invariant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_ref import routing
from lora_ref.errors import LoraError
from lora_ref.fused import batch

ROWS, K, N = 6, 5, 7
INDICES = [[0, 0, 1, 1, 1, 1], [-1, -1, 0, 0, 1, 1], [1, 0, -1, 0, 1, 1], [1] * ROWS, [-1] * ROWS]


def lattice(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(-3, 4, shape).to(dtype)


def leaves(dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = (ROWS,)) -> tuple[Tensor, Tensor, list[Tensor]]:
    """x, w, and a, b of two adapters of different ranks."""
    torch.manual_seed(0)
    x = lattice(*lead, K, dtype=dtype).requires_grad_()
    factors = [lattice(*shape, dtype=dtype).requires_grad_() for r in (2, 3) for shape in ((r, K), (N, r))]
    return x, lattice(N, K, dtype=dtype), factors


def adapters(factors: list[Tensor]) -> list[routing.Routed]:
    return [(factors[0], factors[1], 2.0), (factors[2], factors[3], 0.5)]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_form(index: list[int], dtype: torch.dtype) -> None:
    found = []
    for route in (routing.forward, batch):
        x, w, factors = leaves(dtype)
        y = route(x, w, w[:, 0], adapters(factors), index)
        y.backward(torch.arange(y.numel()).view(y.shape).to(dtype) % 3 - 1)
        found.append([y.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in (x, *factors))])
    for plain, mine in zip(*found, strict=True):
        assert torch.equal(plain, mine)


def test_each_row_may_be_a_sequence() -> None:
    x, w, factors = leaves(lead=(ROWS, 4))
    index = INDICES[2]
    y = batch(x, w, None, adapters(factors), index)
    tokens = batch(x.flatten(0, 1), w, None, adapters(factors), [nth for nth in index for _ in range(4)])
    assert torch.equal(y.flatten(0, 1), tokens)
    (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(dx, torch.autograd.grad(tokens.sum(), x)[0])


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_x_is_kept_once_and_no_row_of_h_twice(index: list[int]) -> None:
    x, w, factors = leaves()
    y = batch(x, w, None, adapters(factors), index)
    kept = [t for t in y.grad_fn.saved_tensors if t is not None]
    own = {t.data_ptr() for t in (x, w, *factors)}
    sorting = [t for t in kept if t.dtype == torch.int64]
    assert len(sorting) == (index == INDICES[2])
    others = sum(t.numel() for t in kept if t.data_ptr() not in own and t.is_floating_point())
    assert others == 2 * index.count(0) + 3 * index.count(1)


def test_an_adapter_that_is_not_a_number_reaches_its_own_rows_alone() -> None:
    x, w, factors = leaves()
    clean = batch(x, w, None, adapters(factors), INDICES[2])
    with torch.no_grad():
        factors[3].fill_(float("nan"))
    y = batch(x, w, None, adapters(factors), INDICES[2])
    for row, nth in enumerate(INDICES[2]):
        assert y[row].isnan().all() if nth == 1 else torch.equal(y[row], clean[row])


@pytest.mark.parametrize("index", [[0], [0] * 5 + [2], [0] * 5 + [-2]])
def test_an_index_must_name_an_adapter_for_each_row(index: list[int]) -> None:
    x, w, factors = leaves()
    with pytest.raises(LoraError):
        batch(x, w, None, adapters(factors), index)
