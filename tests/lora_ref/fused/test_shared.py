"""Projections of one x, and whole feed-forward blocks: values, gradients, and what is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from lora_ref.errors import LoraError
from lora_ref.fused import Projection, mlp, project

M, K, WIDTHS, RANKS = 6, 5, (7, 3, 3), (2, 3, 1)
INNER = 4
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
Leaves = tuple[Tensor, list[Projection]]


def leaves(
    shapes: list[tuple[int, int, int]], dtype: torch.dtype, scalings: tuple[float, ...], without: int | None = None
) -> Leaves:
    """x (2, 3, K), and a projection for each (out, in, r); that at ``without`` has no adapter. Small integers."""
    generator = torch.Generator().manual_seed(0)

    def lattice(*shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)

    x, found = lattice(2, M // 2, K).requires_grad_(), []
    for nth, ((n, k, r), s) in enumerate(zip(shapes, scalings, strict=False)):
        factors = (
            (None, None) if nth == without else tuple(lattice(*shape).requires_grad_() for shape in ((r, k), (n, r)))
        )
        found.append(Projection(lattice(n, k), lattice(n) if nth else None, *factors, s))
    return x, found


def qkv(dtype: torch.dtype, scalings: tuple[float, ...] = (0.5, 2.0, 1.0), without: int | None = None) -> Leaves:
    return leaves([(n, K, r) for n, r in zip(WIDTHS, RANKS, strict=True)], dtype, scalings, without)


def block(dtype: torch.dtype, *, gated: bool) -> Leaves:
    x, (gate, up, down) = leaves([(INNER, K, 2), (INNER, K, 2), (K, INNER, 3)], dtype, (0.5, 0.5, 0.25))
    return x, [gate, up, down] if gated else [up, down]


def plain(x: Tensor, each: Projection) -> Tensor:
    y = F.linear(x, each.w, each.bias)
    return y if each.a is None else y + each.s * F.linear(F.linear(x, each.a), each.b)


def trained(x: Tensor, projections: list[Projection]) -> list[Tensor]:
    return [x, *(t for each in projections for t in (each.a, each.b) if t is not None)]


def plain_block(x: Tensor, projections: list[Projection], activation: str) -> Tensor:
    *first, down = projections
    inner = [plain(x, each) for each in first]
    z = ACTIVATIONS[activation](inner[0])
    return plain(z * inner[1] if len(inner) > 1 else z, down)


def fused_block(x: Tensor, projections: list[Projection], activation: str, dropout: float = 0.0) -> Tensor:
    *gate, up, down = projections
    return mlp(x, gate[0] if gate else None, up, down, activation, dropout=dropout)


def own_bytes(y: Tensor, given: list[Tensor | None]) -> int:
    """Bytes that the function behind y keeps, without those of the tensors that it was given."""
    known = {t.untyped_storage()._cdata for t in given if t is not None}
    kept = {t.untyped_storage()._cdata: t for t in y.grad_fn.saved_tensors if t is not None}
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in known)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scalings", [(0.5, 2.0, 1.0), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("without", [None, 0, 1])
def test_projections_give_the_exact_values_and_gradients(
    dtype: torch.dtype, scalings: tuple[float, ...], without: int | None
) -> None:
    found = []
    for fused in (False, True):
        x, each = qkv(dtype, scalings, without)
        outputs = project(x, *each) if fused else [plain(x, one) for one in each]
        total = sum((nth + 1) * y.sum(dim=-1) for nth, y in enumerate(outputs))
        found.append([*outputs, *torch.autograd.grad(total.sum(), trained(x, each))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_output_that_is_not_used_changes_nothing() -> None:
    x, each = qkv(torch.float64)
    got = torch.autograd.grad(project(x, *each)[1].sum(), trained(x, each))
    want = torch.autograd.grad(plain(x, each[1]).sum(), [x, each[1].a, each[1].b])
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[3], want[1])
    assert torch.equal(got[4], want[2])
    assert not any(gradient.any() for gradient in (got[1], got[2], got[5], got[6]))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_projections_are_those_of_finite_differences(dropout: float) -> None:
    x, each = qkv(torch.float64)

    def call(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        pairs = zip(each, factors[::2], factors[1::2], strict=True)
        return project(x, *(one._replace(a=a, b=b) for one, a, b in pairs), dropout=dropout)

    assert torch.autograd.gradcheck(call, trained(x, each))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    ("gated", "activation"), [(True, "silu"), (True, "gelu"), (False, "gelu"), (False, "gelu_tanh")]
)
def test_a_block_is_what_its_parts_are(gated: bool, activation: str, dropout: float) -> None:  # noqa: FBT001
    x, each = block(torch.float64, gated=gated)
    wanted = trained(x, each)
    if not dropout:
        got, want = fused_block(x, each, activation), plain_block(x, each, activation)
        torch.testing.assert_close(got, want)
        dy = torch.randn_like(want)
        both = (torch.autograd.grad(y, wanted, dy) for y in (got, want))
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other)

    def call(x: Tensor, *factors: Tensor) -> Tensor:
        torch.manual_seed(3)
        pairs = zip(each, factors[::2], factors[1::2], strict=True)
        return fused_block(x, [one._replace(a=a, b=b) for one, a, b in pairs], activation, dropout)

    assert torch.autograd.gradcheck(call, wanted)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_projections_keep_x_h_and_a_mask(dropout: float) -> None:
    x, each = qkv(torch.float64)
    y, *_ = project(x, *each, dropout=dropout)
    given = [x, *(t for one in each for t in one[:4])]
    assert own_bytes(y, given) == M * sum(RANKS) * 8 + bool(dropout) * M * K


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("gated", [True, False])
def test_a_block_keeps_the_r_columns_and_what_the_nonlinearity_needs(gated: bool, dropout: float) -> None:  # noqa: FBT001
    x, each = block(torch.float64, gated=gated)
    y = fused_block(x, each, "silu", dropout)
    given = [x, *(t for one in each for t in one[:4])]
    ranks, inner = (2 + 2 + 3, 2 * INNER) if gated else (2 + 3, INNER)
    assert own_bytes(y, given) == M * (ranks + inner) * 8 + bool(dropout) * M * (K + INNER)


def test_backward_twice_gives_the_same() -> None:
    x, each = block(torch.float64, gated=True)
    y = fused_block(x, each, "silu").square().sum()
    first, second = (torch.autograd.grad(y, trained(x, each), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it itself
def test_both_compile_to_one_graph() -> None:
    torch.compiler.reset()
    x, each = qkv(torch.float32)
    outputs = torch.compile(project, backend="aot_eager", fullgraph=True)(x, *each)
    assert all(torch.equal(one, other) for one, other in zip(outputs, project(x, *each), strict=True))
    x, each = block(torch.float32, gated=True)
    call = torch.compile(mlp, backend="aot_eager", fullgraph=True)
    found = [(y, *torch.autograd.grad(y.sum(), trained(x, each))) for y in (call(x, *each), mlp(x, *each))]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_autocast_gives_what_the_parts_give_there() -> None:
    x, each = qkv(torch.float32, (0.5, 0.5, 0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = project(x, *each)
        want = [plain(x, one) for one in each]
    assert all(
        torch.equal(one, other) and one.dtype == torch.bfloat16 for one, other in zip(outputs, want, strict=True)
    )
    kept = [t for t in outputs[0].grad_fn.saved_tensors if t is not None and t.shape == x.shape]
    assert [t.dtype for t in kept] == [torch.bfloat16]
    gradients = torch.autograd.grad(sum(y.float().sum() for y in outputs), trained(x, each))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_a_trained_base_is_refused() -> None:
    x, (first, *others) = qkv(torch.float32)
    first.w.requires_grad_()
    with pytest.raises(LoraError, match="frozen"):
        project(x, first, *others)
