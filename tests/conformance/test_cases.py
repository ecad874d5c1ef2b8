"""Cases: exact where they say so, rich enough to show something, and the same again from what was printed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.backends.reference import backend as reference
from conformance.cases import Case
from conformance.contract import Facet, dtype_of
from conformance.layout import arrange
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy, to_torch

DTYPES = ("float32", "bfloat16", "float16")


def drawn(dtype: str, draw: Draw) -> st.SearchStrategy[Case]:
    return draw(Subject(reference, Facet.LAYER, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_cases_are_exact(dtype: str) -> None:
    """Every result of the oracle, and every one with the products summed in another order, fits the dtype."""

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn(dtype, Draw(tiers=("exact",), rows=True, geometry=True)))
    def check(case: Case) -> None:
        at, oracle = case.arrays, case.oracle(reference.manifest)
        grads = oracle.gradients(at.x, at.dy)
        values = [oracle.forward(at.x).value, oracle.merged_weight().value, grads.a.value, grads.b.value]
        for value in values if grads.x is None else [*values, grads.x.value]:
            assert np.array_equal(value.astype(dtype_of(case.narrowest)).astype(np.float64), value)

    check()


@pytest.mark.parametrize("dtype", DTYPES)
def test_most_exact_cases_have_a_delta_that_shows(dtype: str) -> None:
    shows: list[bool] = []

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn(dtype, Draw(tiers=("exact",), rows=True)))
    def check(case: Case) -> None:
        shows.append(bool(case.oracle(reference.manifest).delta(case.arrays.x).value.any()))

    check()
    assert np.mean(shows) > 0.8


def test_drawn_cases_keep_the_rules() -> None:
    seen: list[Case] = []

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn("float32", Draw(kinds=("linear",))))
    def check(case: Case) -> None:
        seen.append(case)

    check()
    assert all(case.alpha != case.r for case in seen)
    assert np.mean([case.r > 1 for case in seen]) > 0.5
    for wanted in (
        lambda c: c.r > min(c.in_features, c.out_features),
        lambda c: c.in_features == c.out_features,
        lambda c: c.in_features != c.out_features,
        lambda c: 0 in c.lead,
        lambda c: c.lead == (),
        lambda c: len(c.lead) == 3,
        lambda c: c.rslora,
        lambda c: c.bias,
        lambda c: c.base_zero,
        lambda c: c.tier == "bounded",
    ):
        assert any(wanted(case) for case in seen)


def test_a_printed_case_is_the_same_case() -> None:
    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn("bfloat16", Draw(geometry=True, layouts=True)))
    def check(case: Case) -> None:
        again = Case.from_fields(json.loads(case.to_json()))
        assert again == case
        assert np.array_equal(again.arrays.dy, case.arrays.dy)

    check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"colour": 1}, "a case has no field colour"), ({"r": 1}, "the case is incomplete")],
)
def test_a_case_that_is_none(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case.from_fields(fields)


def test_arrays_are_read_only() -> None:
    case = Case(3, 5, 2, 4.0, bias=True, x_layout="transposed", dy_layout="expanded")
    for array in (case.arrays.w, case.arrays.a, case.arrays.b, case.arrays.x, case.arrays.dy, case.arrays.bias):
        assert array is not None
        assert not array.flags.writeable


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "offset", "expanded"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 3), (4,), ()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_keep_values_and_strides_on_their_way_to_torch(layout: str, shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape).astype(dtype_of(dtype))
    array = arrange(values, layout)
    tensor = to_torch(array)
    assert np.array_equal(to_numpy(tensor), array)
    for size, stride, wanted in zip(array.shape, tensor.stride(), array.strides, strict=True):
        assert size < 2 or array.size == 0 or stride == wanted // array.itemsize


def test_exact_case_leaves_room_for_what_dropout_scales_up() -> None:
    """The mask multiplies the delta of dx too: found as a false alarm, where 265 does not fit into bfloat16."""
    case = Case(
        in_features=1, out_features=6, r=4, alpha=16.0, lead=(3,), kind="fused", dtype="bfloat16", bias=True,
        dropout=0.5, parts=(3, 2, 1), enabled=(False, True, False), seed=713,
    )  # fmt: skip
    at = case.arrays
    dx = case.oracle(reference.manifest).gradients(at.x, at.dy, np.full(at.x.shape, 2.0)).x
    assert dx is not None
    assert np.array_equal(dx.value.astype(dtype_of("bfloat16")).astype(np.float64), dx.value)
