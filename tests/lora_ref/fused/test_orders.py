"""Orders of the products: their operations are counted right, the cheapest is found, and all give the same numbers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lora_ref.fused.orders import FACTORED, Need, Order, cheapest, flops
from lora_ref.fused.single import _Linear

M, K, N, R = 5, 3, 7, 2
ORDERS = [Order(*flags) for flags in product((False, True), repeat=3)]
NEEDS = [Need(*flags) for flags in product((False, True), repeat=3) if any(flags)]
TRAINED = Need(x=True, a=True, b=True)
SERVED = Need(x=False, a=False, b=False)


def leaves(need: Need) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, w, a, b of small integers."""
    generator = torch.Generator().manual_seed(0)
    x, w, a, b = (
        torch.randint(-3, 4, shape, generator=generator).double() for shape in ((M, K), (N, K), (R, K), (N, R))
    )
    return x.requires_grad_(need.x), w, a.requires_grad_(need.a), b.requires_grad_(need.b)


def gradients(y: Tensor, *wanted: Tensor) -> list[Tensor]:
    dy = torch.arange(float(M * N), dtype=torch.float64).view(M, N) % 5 - 2
    return list(torch.autograd.grad(y, [leaf for leaf in wanted if leaf.requires_grad], dy))


def run(order: Order, need: Need) -> list[Tensor]:
    x, w, a, b = leaves(need)
    y = _Linear.apply(x, w, None, a, b, 0.5, 0.0, None, order, need)
    return [y.detach(), *gradients(y, x, a, b)]


CASES = [(order, need) for order in ORDERS for need in NEEDS if need.a or need.b or not order.gradient]


@pytest.mark.parametrize(("order", "need"), CASES, ids=str)
def test_operations_are_those_that_are_done_and_the_result_is_the_same(order: Order, need: Need) -> None:
    with FlopCounterMode(display=False) as counter:
        got = run(order, need)
    frozen = 2 * M * K * N * (1 + need.x)
    assert counter.get_total_flops() == frozen + flops(order, M, K, N, R, need)
    x, w, a, b = leaves(need)
    y = F.linear(x, w) + 0.5 * F.linear(F.linear(x, a), b)
    for mine, plain in zip(got, [y.detach(), *gradients(y, x, a, b)], strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.parametrize(
    ("shape", "need", "order"),
    [
        ((256, 768, 768, 8), TRAINED, FACTORED),
        ((512, 2048, 5632, 16), TRAINED, FACTORED),
        ((4096, 2048, 2048, 16), TRAINED, Order(forward=True, backward=True)),
        ((4096, 2048, 5632, 16), TRAINED, Order(forward=True)),
        ((4096, 5632, 2048, 16), TRAINED, Order(backward=True)),
        ((8192, 512, 512, 192), TRAINED, Order(forward=True, backward=True, gradient=True)),
        ((8192, 512, 512, 64), TRAINED, Order(forward=True, backward=True)),
        ((383, 768, 768, 8), SERVED, FACTORED),
        ((385, 768, 768, 8), SERVED, Order(forward=True)),
    ],
)
def test_the_order_follows_from_the_shapes(shape: tuple[int, int, int, int], need: Need, order: Order) -> None:
    assert cheapest(*shape, need) == order


def test_no_other_order_is_cheaper() -> None:
    for shape in product((1, 4, 100), (3, 40), (3, 50), (1, 2, 30)):
        for need in [*NEEDS, SERVED]:
            least = flops(cheapest(*shape, need), *shape, need)
            assert least == min(flops(order, *shape, need) for order in ORDERS)
