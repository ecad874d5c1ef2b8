"""The tracker against sums done by hand, and simulated steps against real ones."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.canonical import whole
from bench.cases import Mode
from bench.simulate.counts import simulated, tracked
from bench.simulate.fake import make_fake
from bench.simulate.step import Step, take
from bench.simulate.tracker import Category, Tracker

pytestmark = [  # names that transformers renamed in 5.x; peft and older versions know only these
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

X, W = 64 * 1000 * 4, 4_000_256  # bytes: x (64, 1000); W (1000, 1000) in blocks of 512


@pytest.fixture(params=["real", "fake"])
def mode(request: pytest.FixtureRequest) -> Any:
    return FakeTensorMode() if request.param == "fake" else nullcontext()


def test_storages_count_once_in_blocks_and_end_when_the_last_view_does(mode: Any) -> None:
    with mode, Tracker() as tracker:
        x = torch.ones(129)  # 516 bytes
        view = x[3:]
        y = view + 1
        assert tracker.current == 3 * 512
        del x
        assert tracker.current == 3 * 512
        del view
        assert tracker.current == 512
        del y
        assert tracker.current == 0
        assert tracker.peak == 3 * 512


def test_a_resized_storage_counts_with_its_new_size(mode: Any) -> None:
    with mode, Tracker() as tracker:
        x = torch.ones(128)
        x.resize_(256)
        x.add_(1)
        assert tracker.current == 1024
        del x
        assert tracker.current == 0


def _linear_step(mode: Any, *, copies: int, optimiser: bool = False) -> Step:
    """y = Wx with a trained W; each planted copy of x is kept for the backward."""
    module = nn.Linear(1000, 1000, bias=False)
    if not isinstance(mode, nullcontext):
        make_fake(module, mode)

    def call(inputs: Any) -> torch.Tensor:
        x = inputs["x"]
        for _ in range(copies):
            x = x.clone()
        return module(x)

    with mode:
        x, dy = torch.ones(64, 1000), torch.ones(64, 1000)
        adamw = torch.optim.AdamW(module.parameters(), fused=True) if optimiser else None
        return take(module, call, {"x": x}, dy, adamw)


def test_the_categories_at_the_peak_are_those_of_a_sum_by_hand(mode: Any) -> None:
    step = _linear_step(mode, copies=0, optimiser=True)
    assert step.tracker.at_peak() == {
        Category.PARAMETERS: W,
        Category.GRADIENTS: W,  # taken while y still lives
        Category.OPTIMISER: 2 * W + 512,  # two states and a step count
        Category.ACTIVATIONS: X,  # y; W's backward keeps x, which is given
        Category.TEMPORARY: 0,
        Category.INPUTS: 2 * X,
    }
    assert step.tracker.peak == sum(step.tracker.at_peak().values())


def test_a_planted_copy_of_x_is_found_to_the_byte(mode: Any) -> None:
    plain, planted = _linear_step(mode, copies=0), _linear_step(mode, copies=1)
    assert planted.tracker.peak - plain.tracker.peak == X
    assert planted.tracker.at_peak()[Category.ACTIVATIONS] - plain.tracker.at_peak()[Category.ACTIVATIONS] == X


def test_making_the_states_changes_no_parameter() -> None:
    module = nn.Linear(3, 3)
    before = [p.clone() for p in module.parameters()]
    adamw = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    with pytest.raises(RuntimeError, match="planted"):
        take(module, _raise, {}, None, adamw)
    assert all(map(torch.equal, before, module.parameters()))


def _raise(_inputs: Any) -> torch.Tensor:
    raise RuntimeError("planted")


def test_the_collector_runs_again_after_a_failure() -> None:
    with pytest.raises(RuntimeError, match="planted"):
        take(nn.Linear(1, 1), _raise, {})
    assert gc.isenabled()


@pytest.mark.parametrize("way", ["plain", "checkpointing"])
@pytest.mark.parametrize("backend", ["frozen", "reference", "peft"])
@pytest.mark.parametrize(("model", "batch", "seq"), [("tiny-llama", 2, 16), ("tiny-bert", 2, 16), ("minilm", 8, 32)])
def test_a_simulated_step_holds_and_does_what_a_real_one_does(
    model: str, batch: int, seq: int, backend: str, way: str
) -> None:
    case = replace(whole(model, 8, batch, seq, Mode.STEP), grad_ckpt=way == "checkpointing")
    fake, real = simulated(case, backend), tracked(case, backend)
    assert fake.tracker.peak == real.tracker.peak  # the promise is 1 %
    assert fake.tracker.at_peak() == real.tracker.at_peak()
    assert fake.flops == real.flops
    assert fake.tracker.now()[Category.ACTIVATIONS] == 0  # nothing hangs in a cycle


def test_checkpointing_trades_activations_for_operations() -> None:
    case = whole("minilm", 8, 8, 32, Mode.STEP)
    plain, saving = simulated(case, "peft"), simulated(replace(case, grad_ckpt=True), "peft")
    assert saving.tracker.peak < plain.tracker.peak
    assert saving.flops > plain.flops
