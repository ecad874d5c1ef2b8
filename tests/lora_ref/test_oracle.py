"""The closed form against torch's autograd in float64, for every geometry: two computations that share no code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lora_ref.convolution import Conv
from lora_ref.experts import Experts
from lora_ref.geometry import Embedding, Fused, Geometry, Linear
from lora_ref.oracle import Numerics, Oracle
from lora_ref.spec import LoraSpec

SPEC = LoraSpec(r=4, alpha=6.0)
CONVS = [
    Conv(4, 6, (7, 6), (3, 2), (2, 1), (1, 1), (2, 1), 2, mode, factors)
    for mode in ("zeros", "reflect", "replicate", "circular")
    for factors in ("flattened", "block")
]
GEOMETRIES: list[Geometry] = [
    Linear(5, 7),
    Linear(5, 7, transposed=True),
    Embedding(9, 4),
    Embedding(9, 4, padding_idx=2),
    Fused(5, (4, 2, 2), (True, False, True)),
    Fused(5, (3, 3), (False, True)),
    Experts(5, 7, 3, (0, 2, 2, 0, 0, 2)),
    Experts(5, 7, 4, (3, 1, 0, 2, 1, 1)),
    Conv(4, 6, (7,), (3,), (2,), (1,), (2,)),
    Conv(2, 6, (7, 4, 5), (3, 1, 2), (2, 1, 1), (1, 0, 1), (2, 1, 1)),
    *CONVS,
]


def torch_forward(
    g: Geometry, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    s, r = SPEC.scaling, SPEC.r
    if isinstance(g, Linear):
        return F.linear(x, w.T if g.transposed else w, bias) + s * F.linear(F.linear(x, a), b)
    if isinstance(g, Embedding):
        pad = g.padding_idx
        return F.embedding(x, w) + bias + s * F.linear(F.embedding(x, a.T, pad), b)
    if isinstance(g, Fused):
        deltas, nth, row = [], 0, 0
        for n, on in zip(g.parts, g.enabled, strict=True):
            if on:
                deltas.append(F.linear(F.linear(x, a[nth * r : nth * r + r]), b[row : row + n]))
                nth, row = nth + 1, row + n
            else:
                deltas.append(torch.zeros(*x.shape[:-1], n, dtype=x.dtype))
        return F.linear(x, w, bias) + s * torch.cat(deltas, -1)
    if isinstance(g, Experts):
        e = torch.tensor(g.index).reshape(x.shape[:-1])
        delta = torch.einsum("...r,...or->...o", torch.einsum("...i,...ri->...r", x, a[e]), b[e])
        return torch.einsum("...i,...oi->...o", x, w[e]) + bias + s * delta
    assert isinstance(g, Conv)
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(g.kernel) - 1]
    pads = [p for q in reversed(g.padding) for p in (q, q)]

    def run(weight: torch.Tensor, groups: int, bias: torch.Tensor | None = None) -> torch.Tensor:
        padded = F.pad(x, pads, mode="constant" if g.padding_mode == "zeros" else g.padding_mode)
        return conv(padded, weight, bias, stride=g.stride, dilation=g.dilation, groups=groups)

    if g.factors == "block":
        delta = conv(run(a, 1), b, groups=g.groups)
    else:
        delta = run((b.flatten(1) @ a.flatten(1)).view(g.weight_shape), g.groups)
    return run(w, g.groups, bias) + s * delta


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_closed_form_is_what_autograd_gives(geometry: Geometry) -> None:
    """Integers throughout, so that both sides are exact in float64 and equality is equality."""
    rng = np.random.default_rng(0)

    def integers(shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(-4, 5, size=shape).astype(np.float64)

    w, bias = integers(geometry.weight_shape), integers((geometry.out_features,))
    a, b = integers(geometry.a_shape(SPEC.r)), integers(geometry.b_shape(SPEC.r))
    shape = geometry.x_shape((2, 3))
    x = integers(shape) if geometry.differentiable else rng.integers(0, 9, shape)
    dy = integers(geometry.y_shape(shape))
    leaves = [torch.tensor(v, requires_grad=np.asarray(v).dtype.kind == "f") for v in (x, a, b)]
    y = torch_forward(geometry, leaves[0], torch.tensor(w), torch.tensor(bias), leaves[1], leaves[2])
    y.backward(torch.tensor(dy))
    oracle = Oracle(geometry, SPEC, w, bias, a, b)
    gradients = oracle.gradients(x, dy)
    assert np.array_equal(oracle.forward(x).value, y.detach().numpy())
    assert np.array_equal(gradients.a.value, leaves[1].grad.numpy())
    assert np.array_equal(gradients.b.value, leaves[2].grad.numpy())
    if gradients.x is not None:
        assert np.array_equal(gradients.x.value, leaves[0].grad.numpy())


def test_mask_reaches_the_adapter_and_the_gradient_that_returns() -> None:
    rng = np.random.default_rng(0)
    w, a, b = rng.integers(-4, 5, (7, 5)), rng.integers(-4, 5, (4, 5)), rng.integers(-4, 5, (7, 4))
    x, dy, mask = rng.integers(-4, 5, (3, 5)), rng.integers(-4, 5, (3, 7)), rng.integers(0, 2, (3, 5)) * 2.0
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    as64 = [torch.tensor(v, dtype=torch.float64) for v in (w, a, b, mask, dy)]
    y = leaf @ as64[0].T + SPEC.scaling * (leaf * as64[3]) @ as64[1].T @ as64[2].T
    y.backward(as64[4])
    oracle = Oracle(Linear(5, 7), SPEC, w, None, a, b)
    assert np.array_equal(oracle.forward(x, mask).value, y.detach().numpy())
    dx = oracle.gradients(x, dy, mask).x
    assert dx is not None
    assert np.array_equal(dx.value, leaf.grad.numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bounds_hold_and_are_not_slack(dtype: str) -> None:
    """Torch's own layer stays within the bound in every element, and comes near it in half precision."""
    torch.manual_seed(0)
    largest = 0.0
    for _ in range(200):
        x, w, a, b = (torch.randn(*s).to(getattr(torch, dtype)) for s in ((6, 13), (11, 13), (3, 13), (11, 3)))
        y = F.linear(x, w) + F.linear(F.linear(x, a), b) * SPEC.scaling
        arrays = [t.double().numpy() for t in (w, a, b)]
        oracle = Oracle(Linear(13, 11), SPEC, arrays[0], None, *arrays[1:], base_dtype=dtype, adapter_dtype=dtype)
        expected = oracle.forward(x.double().numpy())
        largest = max(largest, float((np.abs(y.double().numpy() - expected.value) / expected.bound).max()))
    assert largest <= 1.0
    if dtype != "float32":
        assert largest > 0.5


def test_a_relative_error_of_a_few_units_of_roundoff_in_s_breaks_the_bound_in_bfloat16() -> None:
    rng = np.random.default_rng(0)
    x, a, b = rng.standard_normal((40, 3)), rng.standard_normal((2, 3)), rng.standard_normal((5, 2))
    oracle = Oracle(Linear(3, 5), SPEC, np.zeros((5, 3)), None, a, b, base_dtype="bfloat16", adapter_dtype="bfloat16")
    expected = oracle.forward(x)
    assert (np.abs(expected.value * 8 * 2.0**-8) > expected.bound).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_free_order_is_free_only_where_the_formed_weight_loses_nothing(dtype: str) -> None:
    """Bounds of "cheapest" hold those of the factored order, and in float32 those of forming W + s·B·A as well."""
    rng = np.random.default_rng(0)
    w, a, b, x, dy = (rng.standard_normal(shape) for shape in ((7, 5), (4, 5), (7, 4), (3, 5), (3, 7)))
    layer, kept = (Linear(5, 7), SPEC, w, None, a, b), {"base_dtype": dtype, "adapter_dtype": dtype}
    factored, free = Oracle(*layer, **kept), Oracle(*layer, **kept, numerics=Numerics(order="cheapest"))
    formed = Oracle(*layer, **kept, numerics=Numerics(order="weight"))
    grads = [(oracle.gradients(x, dy).a.bound, oracle.gradients(x, dy).b.bound) for oracle in (factored, free, formed)]
    bounds = [oracle.forward(x).bound for oracle in (factored, free)] + [free.merged_forward(x).bound]
    if dtype == "float32":
        assert (bounds[1] >= np.maximum(bounds[0], bounds[2])).all()
        for known, either, other in zip(*grads, strict=True):
            assert (either == np.maximum(known, other)).all()
    else:
        assert (bounds[1] <= 1.001 * bounds[0]).all()
        assert all((known == either).all() for known, either, _ in zip(*grads, strict=True))
