"""The test of initial values: right ones pass in every dtype, wrong ones do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conformance.laws import LAWS, judge_law
from conformance.violation import Violation

FAN_IN, R, N = 24, 4, 2**13


def draw(name: str, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = LAWS[name].scale(FAN_IN, R)
    values = torch.empty(N, dtype=dtype)
    if np.isfinite(LAWS[name].bound):
        return values.uniform_(-scale, scale, generator=generator)
    return values.normal_(0.0, scale, generator=generator)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", LAWS)
def test_values_of_the_law_pass(name: str, dtype: str) -> None:
    for seed in range(5):
        values = draw(name, seed, getattr(torch, dtype)).double().numpy()
        judge_law("A", values, name, FAN_IN, R, dtype)


@pytest.mark.parametrize("name", LAWS)
def test_values_that_are_a_third_too_large_do_not(name: str) -> None:
    values = draw(name, 0, torch.float32).double().numpy() * 4 / 3
    with pytest.raises(Violation):
        judge_law("A", values, name, FAN_IN, R, "float32")
