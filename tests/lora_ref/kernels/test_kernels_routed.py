"""Batches whose rows have adapters of their own, against each adapter alone: every bit must be right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import EXAMPLES, every_dtype, routed_cases
from kernel_judges import judge_routed

from conformance.routed import Routed
from lora_ref.fused.kernels import Routing, Stacked, routed_linear


@every_dtype
def test_every_bit_is_right_and_no_neighbour_is_read(device: str, dtype: str, adapter: str) -> None:
    @EXAMPLES
    @given(routed_cases(dtype, adapter), st.booleans())
    def check(case: Routed, reverse: bool) -> None:  # noqa: FBT001
        judge_routed(case, device, reverse=reverse)

    check()


def dense(device: str, *ranks: int, rows: int = 40) -> tuple[torch.Tensor, ...]:
    """x, W, dy and the factors of each adapter. On a GPU they show a change of the order of summation.

    In the interpreter they are small whole numbers, whose sums have no order: there numpy's BLAS forms a block's
    products, and on some processors it sums up a row otherwise at another place in the block.
    """
    draw = torch.Generator().manual_seed(3)
    shapes = [(rows, 33), (17, 33), (rows, 17), *[(r, 33) for r in ranks], *[(17, r) for r in ranks]]
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    return tuple(value.round() if device == "cpu" else value.to(device) for value in values)


def run(x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor, adapters: Stacked, index: list[int]) -> list[torch.Tensor]:
    """y, dx, dA, dB."""
    x = x.clone().requires_grad_()
    for factor in (adapters.a, adapters.b):
        factor.requires_grad_()
    y = routed_linear(x, w, None, adapters, Routing.of(index, len(adapters.ranks), x.device))
    y.backward(dy)
    return [value for value in (y.detach(), x.grad, adapters.a.grad, adapters.b.grad) if value is not None]


def test_the_order_of_the_adapters_changes_no_bit(device: str) -> None:
    x, w, dy, *factors = dense(device, 3, 8, 20)
    own = [(a, b, s) for a, b, s in zip(factors[:3], factors[3:], (0.5, 2.0, 4.0), strict=True)]
    index = torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(4)).tolist()
    there = [2, 0, 1]  # adapter i becomes number there[i]
    moved = [own[there.index(nth)] for nth in range(3)]
    y, dx, da, db = run(x, w, dy, Stacked.of(own), index)
    y2, dx2, da2, db2 = run(x, w, dy, Stacked.of(moved), [-1 if i < 0 else there[i] for i in index])
    assert torch.equal(y, y2)
    assert torch.equal(dx, dx2)
    assert torch.equal(da, da2[there])
    assert torch.equal(db, db2[there])


def test_the_other_rows_change_no_bit(device: str) -> None:
    """The base is zero here: how torch forms its product is not the kernels' affair."""
    x, w, dy, a0, a1, b0, b1 = dense(device, 3, 20)
    adapters, index, some = [(a0, b0, 0.5), (a1, b1, 2.0)], [nth % 3 - 1 for nth in range(40)], slice(7, 23)
    y, dx, *_ = run(x, 0 * w, dy, Stacked.of(adapters), index)
    y2, dx2, *_ = run(x[some], 0 * w, dy[some], Stacked.of(adapters), index[some])
    assert torch.equal(y[some], y2)
    assert torch.equal(dx[some], dx2)


def test_rows_of_no_adapter_are_the_base(device: str) -> None:
    x, w, dy, a, b = dense(device, 4)
    y, dx, da, db = run(x, w, dy, Stacked.of([(a, b, 2.0)]), [-1] * 40)
    assert torch.equal(y, torch.nn.functional.linear(x, w))
    assert torch.equal(dx, dy @ w)
    assert not da.any()
    assert not db.any()


@pytest.mark.parametrize("rows", [0, 3])
def test_no_adapters_and_no_rows(device: str, rows: int) -> None:
    x, w, dy = dense(device, rows=rows)
    none = torch.zeros(0, dtype=torch.int32, device=device)
    adapters = Stacked(x.new_empty(0, 4, 33), x.new_empty(0, 17, 4), none, none.float())
    y, dx, da, db = run(x, w, dy, adapters, [-1] * rows)
    assert torch.equal(y, torch.nn.functional.linear(x, w))
    assert dx.shape == x.shape
    assert (da.shape, db.shape) == ((0, 4, 33), (0, 17, 4))
