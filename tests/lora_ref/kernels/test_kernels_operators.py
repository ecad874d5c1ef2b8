"""As torch sees the kernels: schemas, fake tensors, gradients, torch.compile, FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.simulate.work import Work
from lora_ref.fused.kernels import Routing, Stacked, lora_linear, routed_linear

M, K, N, R = 5, 6, 7, 3


def some(device: str, *shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device).requires_grad_(grad)


def routed(device: str) -> tuple[Stacked, Routing]:
    factors = [(some(device, r, K), some(device, N, r), 0.5 * r) for r in (R, 2)]
    return Stacked.of(factors), Routing.of([0, -1, 1, 1, 0], 2, device)


@pytest.mark.parametrize("grads", [(True, False, False, True, True), (False, False, False, True, True), (True,) * 5])
def test_the_linear_is_a_proper_operator(device: str, grads: tuple[bool, ...]) -> None:
    shapes = ((M, K), (N, K), (N,), (R, K), (N, R))
    tensors = [some(device, *shape, grad=grad) for shape, grad in zip(shapes, grads, strict=True)]
    torch.library.opcheck(torch.ops.lora_ref.lora_linear.default, (*tensors, 0.5))


def test_the_routed_delta_is_a_proper_operator(device: str) -> None:
    adapters, routing = routed(device)
    x, base = some(device, M, K, grad=True), some(device, M, N, grad=True)
    factors = (adapters.a.requires_grad_(), adapters.b.requires_grad_(), adapters.ranks, adapters.scalings)
    torch.library.opcheck(torch.ops.lora_ref.routed_lora.default, (x, base, *factors, routing.order, routing.starts))


def test_what_a_backward_calls_are_proper_operators(device: str) -> None:
    ops, (adapters, routing) = torch.ops.lora_ref, routed(device)
    x, dy, w, a, b, h = (some(device, *s) for s in ((M, K), (M, N), (N, K), (R, K), (N, R), (M, R)))
    ranks, scalings, rows = adapters.ranks, adapters.scalings, (routing.order, routing.starts)
    torch.library.opcheck(ops.shrink.default, (dy, b.T, 0.5))
    torch.library.opcheck(ops.linear_expand.default, (dy, w.T, None, h, a.T))
    torch.library.opcheck(ops.factor_gradient.default, (h, x, False))
    torch.library.opcheck(ops.factor_gradient.default, (h, dy, True))
    torch.library.opcheck(ops.routed_shrink.default, (dy, adapters.b.transpose(1, 2), ranks, scalings, *rows))
    expanded = (h, adapters.a.transpose(1, 2), ranks, *rows, torch.float32)
    torch.library.opcheck(ops.routed_expand.default, expanded)
    torch.library.opcheck(ops.routed_gradient.default, (h, dy, *rows, True))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_in_one_graph_it_is_the_same(device: str, backend: str) -> None:
    torch.compiler.reset()
    adapters, routing = routed(device)
    w, bias, a, b = (some(device, *shape) for shape in ((N, K), (N,), (R, K), (N, R)))
    x = some(device, 2, M, K, grad=True)
    _same(lambda: lora_linear(x, w, bias, a, b, 0.5), backend, x, a.requires_grad_(), b.requires_grad_())
    rows = some(device, M, K, grad=True)
    factors = (adapters.a.requires_grad_(), adapters.b.requires_grad_())
    _same(lambda: routed_linear(rows, w, bias, adapters, routing), backend, rows, *factors)


def _same(forward: Callable[[], Tensor], backend: str, *leaves: Tensor) -> None:
    results = []
    for run in (forward, torch.compile(forward, backend=backend, fullgraph=True)):
        y = run()
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    assert all(torch.equal(plain, compiled) for plain, compiled in zip(*results, strict=True))


def test_no_second_derivative_is_made_up(device: str) -> None:
    x, w, a, b = (some(device, *shape, grad=True) for shape in ((M, K), (N, K), (R, K), (N, R)))
    (dx,) = torch.autograd.grad(lora_linear(x, w, None, a, b, 0.5).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        torch.autograd.grad(dx.sum(), a)


FLOPS = {
    "lora_linear": 2 * 512 * (4096 * 1024 + 16 * (4096 + 1024)),
    "shrink": 2 * 512 * 1024 * 16,
    "linear_expand": 2 * 512 * (4096 * 1024 + 16 * 4096),
    "factor_gradient": 2 * 512 * 16 * (4096 + 1024),
    "routed_lora": 2 * 512 * 16 * (4096 + 1024),
    "routed_shrink": 2 * 512 * 1024 * 16,
    "routed_expand": 2 * 512 * 16 * 4096,
    "routed_gradient": 2 * 512 * 16 * (4096 + 1024),
}


def fake_step() -> None:
    """Forward and backward of both layers on tensors without memory: 512 rows, 4096 to 1024 features, r = 16."""
    x, a, b = (torch.empty(shape, requires_grad=True) for shape in ((512, 4096), (16, 4096), (1024, 16)))
    w = torch.empty(1024, 4096)
    lora_linear(x, w, None, a, b, 2.0).sum().backward()
    many_a, many_b = (torch.empty(shape, requires_grad=True) for shape in ((3, 16, 4096), (3, 1024, 16)))
    order, starts, ranks = (torch.empty(n, dtype=torch.int32) for n in (512, 5, 3))
    adapters = Stacked(many_a, many_b, ranks, torch.empty(3))
    routed_linear(x, w, None, adapters, Routing(order, starts)).sum().backward()


def test_flops_are_counted_on_fake_tensors() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        fake_step()
    found = {str(op).removeprefix("lora_ref."): count for op, count in counter.get_flop_counts()["Global"].items()}
    assert {name: count for name, count in found.items() if not name.startswith("aten")} == FLOPS


def test_the_simulator_sees_them() -> None:
    with FakeTensorMode(), Work() as work:
        fake_step()
    base = 2 * 2 * 512 * 4096 * 1024  # torch's own product of the routed layer, forward and backward
    assert work.flops == sum(FLOPS.values()) + base
