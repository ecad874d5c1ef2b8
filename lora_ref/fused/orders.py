"""In which order the products of a LoRA layer are formed: the one of the fewest operations, counted from the shapes.

y = x Wᵀ + s (x Aᵀ) Bᵀ is as well y = x (W + s B A)ᵀ, dx likewise, and dA, dB follow from dyᵀ x as well as from h and u
(see ``lora_ref.fused.products``). Which is cheaper depends on M, the rows of x, and on in, out and r. The idea is that
of RunLoRA (Cherniuk et al., 2023, arXiv:2312.03415), section 3.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch


class Need(NamedTuple):
    """Which gradients a backward will be asked for; of several adapters, whether of any."""

    x: bool
    a: bool
    b: bool


class Order(NamedTuple):
    """Each False is the factored form.

    forward: W + s·B·A is formed, and x is multiplied with it alone.
    backward: the same for dx.
    gradient: dyᵀ x (out, in) is formed, and dA and dB follow from it.
    """

    forward: bool = False
    backward: bool = False
    gradient: bool = False


FACTORED = Order()
_OTHERS = [Order(*flags) for flags in product((False, True), repeat=3) if any(flags)]


def cheapest(m: int, k: int, n: int, r: int, need: Need) -> Order:
    """The order of the fewest operations for x (m, k), W (n, k) and rank r; of equals, the most factored one."""
    search = _search if torch.compiler.is_compiling() else _known  # sizes may be symbols then, which no cache can hold
    return search(m, k, n, r, need)


def _search(m: int, k: int, n: int, r: int, need: Need) -> Order:
    best = FACTORED
    for order in _OTHERS:
        if flops(order, m, k, n, r, need) < flops(best, m, k, n, r, need):
            best = order
    return best


_known = lru_cache(maxsize=4096)(_search)


def flops(order: Order, m: int, k: int, n: int, r: int, need: Need) -> int:
    """Multiplications and additions beyond those of the frozen layer, of a forward and its backward."""
    h, u, ba = 2 * m * k * r, 2 * m * n * r, 2 * n * k * r  # x Aᵀ, dy B, B A; and each product as large as one of them
    total = ba if order.forward else h + u
    if order.gradient:
        total += (need.a or need.b) * 2 * m * n * k + need.a * ba + need.b * ba
    else:
        total += need.a * (u + h) + need.b * (u + order.forward * h)  # h is kept where the forward formed it
    if need.x:
        known = need.a and not order.gradient
        total += ba if order.backward else (not known) * u + h
    return total
