"""One training step under the tracker, of real or of fake tensors alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.nets import Inputs
from bench.simulate.tracker import Category, Tracker
from bench.simulate.work import Work


@dataclass(frozen=True)
class Step:
    """What was held, and what each part had to do. ``optimise`` is empty where nothing is stepped."""

    tracker: Tracker
    forward: Work
    backward: Work
    optimise: Work

    @property
    def works(self) -> tuple[Work, Work, Work]:
        return self.forward, self.backward, self.optimise

    @property
    def flops(self) -> int:
        return sum(work.flops for work in self.works)


def take(
    module: nn.Module,
    call: Callable[[Inputs], Tensor],
    inputs: Inputs,
    dy: Tensor | None = None,
    optimiser: torch.optim.Optimizer | None = None,
) -> Step:
    """Forward, backward from ``dy`` (of a loss: None), and a step of the optimiser, if there is one.

    It is any step but the first one: the optimiser has its states from the start, and gradients start from None.
    The cycle collector waits meanwhile, so the peak is the same each time; what hangs in a cycle counts as held.
    """
    held = [value for value in inputs.values() if isinstance(value, Tensor)]
    leaves = [t for t in (*module.parameters(), *held) if t.requires_grad]
    if optimiser is not None:
        _make_states(optimiser)
    for leaf in leaves:
        leaf.grad = None
    forward, backward, optimise = Work(), Work(), Work()
    with _no_collector(), Tracker() as tracker:
        tracker.hold(Category.PARAMETERS, [*module.parameters(), *module.buffers()])
        tracker.hold(Category.INPUTS, held if dy is None else [*held, dy])
        tracker.hold(Category.OPTIMISER, _states(optimiser) if optimiser else [])
        tracker.watch(leaves)
        with forward:
            y = call(inputs)
        tracker.forward_ended()
        if y.requires_grad:
            with backward:
                torch.autograd.backward(y, dy)
        if optimiser is not None:
            with optimise:
                optimiser.step()
    return Step(tracker, forward, backward, optimise)


def _make_states(optimiser: torch.optim.Optimizer) -> None:
    """A step with gradients of zero, and without weight decay, which changes no parameter."""
    decays = [group.get("weight_decay", 0.0) for group in optimiser.param_groups]
    for group in optimiser.param_groups:
        group["weight_decay"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for group, decay in zip(optimiser.param_groups, decays, strict=True):
        group["weight_decay"] = decay


def _states(optimiser: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimiser.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@contextmanager
def _no_collector() -> Iterator[None]:
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
