"""The fused linear layer: its gradients, what it keeps, and the ways in which it is run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn

from lora_ref.errors import LoraError
from lora_ref.fused import FusedLayer, linear
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec

M, K, N, R = 6, 5, 7, 2


def leaves(dtype: torch.dtype = torch.float64, frozen: str = "") -> list[Tensor]:
    """x (2, 3, K), w, a, b; those that are not named in ``frozen`` ask for gradients, but for w."""
    generator = torch.Generator().manual_seed(0)
    x, w, a, b = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((2, M // 2, K), (N, K), (R, K), (N, R))
    )
    for name, leaf in zip("xab", (x, a, b), strict=True):
        leaf.requires_grad_(name not in frozen)
    return [x, w, a, b]


def kept(forward: Callable[[], Tensor]) -> list[tuple[int, ...]]:
    """The shapes of what autograd keeps, each memory once."""
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        return found.setdefault(tensor.untyped_storage()._cdata, tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sorted(tuple(tensor.shape) for tensor in found.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("biased", ["", "biased"])
def test_gradients_are_those_of_finite_differences(dropout: float, biased: str) -> None:
    x, w, a, b = leaves()

    def call(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(3)
        return linear(x, w, w[:, 0] if biased else None, a, b, 0.7, dropout=dropout)

    assert torch.autograd.gradcheck(call, (x, a, b))


@pytest.mark.parametrize("scalings", [(0.5, 0.5), (0.5, 2.0)])
def test_several_adapters_add_up(scalings: tuple[float, float]) -> None:
    x, w, a, b = leaves()
    _, _, a2, b2 = (leaf.detach().flip(0).requires_grad_(leaf.requires_grad) for leaf in leaves())
    first, second = scalings
    got = linear(x, w, None, torch.cat([a, a2]), torch.cat([b, b2], dim=1), ((R, first), (R, second)))
    want = F.linear(x, w) + first * F.linear(F.linear(x, a), b) + second * F.linear(F.linear(x, a2), b2)
    dy, wanted = torch.randn_like(want), (x, a, b, a2, b2)
    for mine, plain in zip(torch.autograd.grad(got, wanted, dy), torch.autograd.grad(want, wanted, dy), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize(
    ("frozen", "dropout", "expected"),
    [
        ("", 0.0, ["x", "w", "a", "b", "h"]),
        ("", 0.5, ["x", "w", "a", "b", "h", "mask"]),
        ("x", 0.0, ["x", "a", "b", "h"]),
        ("a", 0.0, ["w", "a", "b", "h"]),
        ("b", 0.0, ["x", "w", "a", "b"]),
        ("ab", 0.0, ["w", "a", "b"]),
    ],
)
def test_no_more_is_kept_than_the_gradients_need(frozen: str, dropout: float, expected: list[str]) -> None:
    x, w, a, b = leaves(torch.bfloat16, frozen)
    shapes = {"x": (2, M // 2, K), "w": (N, K), "a": (R, K), "b": (N, R), "h": (M, R), "mask": (M, K)}
    got = kept(lambda: linear(x, w, None, a, b, 1.0, dropout=dropout))
    assert got == sorted(shapes[name] for name in expected)


def test_a_mask_costs_one_byte_an_element() -> None:
    x, w, a, b = leaves()
    masks = [t for t in linear(x, w, None, a, b, 1.0, dropout=0.5).grad_fn.saved_tensors if t.shape == (M, K)]
    assert [mask.element_size() for mask in masks] == [1]


def test_backward_twice_gives_the_same() -> None:
    x, w, a, b = leaves()
    y = linear(x, w, None, a, b, 2.0)
    dy = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, (x, a, b), dy, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x, w, a, b = leaves()
    (dx,) = torch.autograd.grad(linear(x, w, None, a, b, 2.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_a_trained_base_is_refused() -> None:
    x, w, a, b = leaves()
    with pytest.raises(LoraError, match="frozen"):
        linear(x, w.requires_grad_(), None, a, b, 2.0)


def test_a_backward_inside_a_region_computes_as_its_forward_did() -> None:
    x, w, a, b = leaves(torch.float32)
    y = linear(x, w, None, a, b, 2.0)
    dy = torch.randn_like(y)
    want = torch.autograd.grad(y, (x, a, b), dy, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = torch.autograd.grad(y, (x, a, b), dy)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it itself
@pytest.mark.parametrize("region", ["", "autocast"])
def test_it_compiles_to_one_graph(region: str) -> None:
    x, w, a, b = leaves(torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    found = []
    for call in (linear, compiled):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(region)):
            y = call(x, w, None, a, b, 2.0, dropout=0.5)
        found.append([y, *torch.autograd.grad(y, (x, a, b), torch.ones_like(y))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def layer(**kw: object) -> FusedLayer:
    torch.manual_seed(0)
    fused = FusedLayer(nn.Linear(K, N))
    fused.add("default", LoraSpec(R, 3.0, **kw))
    nn.init.normal_(fused.adapters["default"].b)
    return fused


def computed_by(y: Tensor) -> set[str]:
    """The names of all functions in the graph of y."""
    todo, seen = [y.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None:
            seen.add(node.name())
            todo += [following for following, _ in node.next_functions]
    return seen


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"dora": True}, {"init": "pissa"}, {"init": "olora"}])
def test_a_layer_is_one_function(options: dict[str, object]) -> None:
    fused = layer(**options)
    assert "_LinearBackward" in computed_by(fused(torch.randn(M, K)))


def test_two_adapters_are_one_function_unless_each_has_a_mask() -> None:
    for dropout, expected in ((0.0, True), (0.5, False)):
        fused = layer(dropout=dropout)
        fused.add("second", LoraSpec(R, 3.0, dropout=dropout))
        fused.activate("default", "second")
        assert ("_LinearBackward" in computed_by(fused(torch.randn(M, K)))) is expected
        assert "_LinearBackward" in computed_by(fused.eval()(torch.randn(M, K)))


@pytest.mark.parametrize("obstacle", ["hook", "pre_hook", "forward", "trained bias"])
def test_a_base_that_does_more_is_called(obstacle: str) -> None:
    fused = layer()
    if obstacle == "hook":
        fused.base.register_forward_hook(lambda _module, _args, y: 2 * y)
    elif obstacle == "pre_hook":
        fused.base.register_forward_pre_hook(lambda _module, args: 2 * args[0])
    elif obstacle == "forward":
        plain = fused.base.forward
        fused.base.forward = lambda x: 2 * plain(x)
    else:
        fused.base.bias.requires_grad_()
    x = torch.randn(M, K)
    y = fused(x)
    assert "_LinearBackward" not in computed_by(y)
    assert torch.equal(y, LoraLayer.forward(fused, x))
