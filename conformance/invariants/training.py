"""Training: each step goes where the closed form goes; divided, cut off or merged, it is the same training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Arrays, Case, InexactCaseError
from conformance.contract import Array, Facet, Feature, ModelHandle
from conformance.invariant import invariant
from conformance.stack import NAMES, PARTS, STEPS, StackCase
from conformance.stepping import stepped
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy, to_torch
from conformance.violation import must
from lora_ref.rounding import PRECISION_BITS

step_oracle = invariant("step-oracle", family="training", after=("grad-oracle",))
training_parity = invariant("training-parity", family="training", after=("grad-oracle",))
accumulation_parity = invariant("accumulation-parity", family="training", after=("training-parity",))
resume_parity = invariant("resume-parity", family="training", after=("training-parity",))
merge_after_training = invariant("merge-after-training", family="training", after=("training-parity",))

_SGD_STEPS = 3
_LR, _DECAY = 2.0**-8, 2.0**-3  # powers of two: a product with them rounds nothing
_COST = 5


@step_oracle.on(
    Facet.LAYER,
    needs={Feature.TRAIN_STEP},
    cost=2,
    draws=Draw(kinds=("linear", "transposed"), rows=True, small=True, headroom=1),
)
def _(subject: Subject, case: Case) -> None:
    """An SGD step takes A to A - lr (dA + decay A) and B likewise, with the gradients at A and B as they are then.

    Three steps, each judged from the values that the backend itself had before it, in y too. So errors do not add up:
    however long a training is, it leaves the reference's path by no more than the rounding of each of its steps.
    """
    handle, x, dy = subject.attach(case), case.arrays.x, case.arrays.dy
    integers = case.tier == "exact"  # with lr = 1/s and no decay a step keeps them so, until they are too large
    lr, decay = (1.0 / case.spec.scaling, 0.0) if integers else (_LR, _DECAY)
    values = {"a": case.arrays.a, "b": case.arrays.b}
    for step in range(1, _SGD_STEPS + 1):
        oracle = case.oracle_of(values["a"], values["b"], subject.manifest)
        gradients = oracle.gradients(x, dy)
        expected = {
            name: stepped(oracle, values[name], gradient, lr, decay)
            for name, gradient in (("a", gradients.a), ("b", gradients.b))
        }
        if integers and not all(_held(case, each.value) for each in expected.values()):
            return
        handle.step(x, dy, lr=lr, weight_decay=decay)
        after = handle.tensors()
        for name, each in expected.items():
            values[name] = after[f"{name}:default"].value
            subject.judge(f"{name.upper()} after step {step}", values[name], each, exact=integers)
        if not all(np.isfinite(value.astype(np.float64)).all() for value in values.values()):
            return  # the dtype had to overflow: a bound would have told otherwise
        if integers and not _exact_sums(case, **values):
            return
        y = case.oracle_of(values["a"], values["b"], subject.manifest).forward(x)
        subject.judge(f"y after step {step}", handle.forward(x), y, exact=integers)


def _held(case: Case, integers: Array) -> bool:
    """Whether the dtype of A and B holds them."""
    return bool((np.abs(integers) <= 2.0 ** PRECISION_BITS[case.adapter]).all())


def _exact_sums(case: Case, a: Array, b: Array) -> bool:
    """Whether every partial sum with these integers is exact."""
    at = case.arrays
    return Arrays(at.w, at.bias, a, b, at.x, at.dy).largest_sum(case) <= 2.0 ** PRECISION_BITS[case.narrowest]


@dataclass(frozen=True)
class DrawStack:
    """Any targets, rank and scaling of the stack; momenta as asked for."""

    momenta: tuple[int, ...] = (0, 1)

    def __call__(self, subject: Subject) -> SearchStrategy[StackCase]:  # noqa: ARG002 - they are the same for all
        return st.builds(
            StackCase,
            r=st.sampled_from((2, 3, 1, 4)),
            scaling=st.sampled_from((2, 4)),
            targets=st.sampled_from((NAMES, NAMES[:1], NAMES[1:])),
            momentum=st.sampled_from(self.momenta),
            seed=st.integers(0, 2**32 - 1),
        ).filter(_exact)

    def rebuild(self, given: Mapping[str, Any]) -> StackCase:
        return StackCase.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> StackCase:
        return self.rebuild({**given, "dtype": subject.dtype})

    def lacking(self, subject: Subject) -> str:  # noqa: ARG002 - the models are the suite's own
        return ""


def _exact(case: StackCase) -> bool:
    try:
        _ = case.arrays
    except InexactCaseError:
        return False
    return True


_ON_STACK: Any = {"needs": {Feature.TRAIN_STEP}, "cost": _COST, "dtypes": ("float32",), "per_model": False}


@training_parity.on(Facet.MODEL, draws=DrawStack(), **_ON_STACK)
def _(subject: Subject, case: StackCase) -> None:
    """A model that is trained for two steps has, bit for bit, the closed form's outputs and A, B after each of them.

    SGD, with and without momentum, in whole numbers. The base does not move, and what was trained is what eval gives.
    """
    run = _Run(subject, case)
    for step in range(STEPS):
        run.backward(step)
        run.step(step)
    base = run.handle.base_tensors()
    for name, value in case.base().state_dict().items():
        subject.judge.same(f"base {name} after {STEPS} steps", to_numpy(base[name]), to_numpy(value))
    subject.judge.same("y of the trained model", run.trained(), case.expected["trained y"])


@accumulation_parity.on(Facet.MODEL, draws=DrawStack(), **_ON_STACK)
def _(subject: Subject, case: StackCase) -> None:
    """Gradients accumulated over the parts of a batch are those of the whole batch, bit for bit, and so is the step.

    In one step each part is computed to its end, and in the next one all forwards come before the first backward, as
    in a pipeline: what a backward needs is kept with its own forward.
    """
    run = _Run(subject, case)
    for step in range(STEPS):
        if step % 2:
            outputs = [run.forward(step, part) for part in range(PARTS)]
            for part, y in enumerate(outputs):
                run.backward_of(y, step, part)
        else:
            for part in range(PARTS):
                run.backward(step, part)
        for path, (name, factor) in run.factors():
            grad = None if factor.grad is None else to_numpy(factor.grad)
            must(grad is not None, f"d{name.upper()} of {path}", "a gradient", "none")
            assert grad is not None
            subject.judge.same(
                f"d{name.upper()} of {path} over {PARTS} parts", grad, case.expected[f"d{name}:{step}:{path}"]
            )
        run.step(step)


@resume_parity.on(Facet.MODEL, draws=DrawStack(momenta=(1, 2)), **_ON_STACK)
def _(subject: Subject, case: StackCase) -> None:
    """A training that is resumed from its state dicts ends, bit for bit, as one that was never cut off.

    After the first step the states of model and optimiser are loaded into a model that was adapted anew, as a program
    does that starts again; the momentum of each parameter must find its own.
    """
    run = _Run(subject, case)
    run.backward(0)
    run.step(0)
    model, optimiser = copy.deepcopy((run.handle.module.state_dict(), run.optimiser.state_dict()))
    again = _Run(subject, case, filled=False)
    again.handle.module.load_state_dict(model)
    again.optimiser.load_state_dict(optimiser)
    again.backward(1)
    again.step(1)
    subject.judge.same("y of the trained model", again.trained(), case.expected["trained y"])


@merge_after_training.on(Facet.MODEL, draws=DrawStack(), **{**_ON_STACK, "needs": {Feature.TRAIN_STEP, Feature.MERGE}})
def _(subject: Subject, case: StackCase) -> None:
    """Merged after training, the weights are W + s·B·A with the trained A and B, and give its outputs."""
    run = _Run(subject, case)
    for step in range(STEPS):
        run.backward(step)
        run.step(step)
    run.handle.module.eval()
    run.handle.merge()
    for path in case.sites:
        subject.judge.same(f"W' of {path}", to_numpy(run.handle.weight(path)), case.expected[f"merged:{path}"])
    subject.judge.same("y of the merged model", run.trained(), case.expected["trained y"])


class _Run:
    """A training of the stack; what it computes is judged as it goes."""

    def __init__(self, subject: Subject, case: StackCase, *, filled: bool = True) -> None:
        self.subject, self.case = subject, case
        self.handle: ModelHandle = subject.model.attach(case.base(), case.spec)
        sites = sorted(self.handle.sites())
        must(sites == sorted(case.sites), "adapted modules", ", ".join(case.sites), ", ".join(sites) or "none")
        if filled:
            case.fill(self.handle)
        live = [p for p in self.handle.module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(live, lr=1.0, momentum=float(case.momentum))

    def backward(self, step: int, *parts: int) -> None:
        """Gradients of the mean over the parts of a batch; ``parts`` are those at hand, by default all."""
        at = parts or tuple(range(PARTS))
        self.backward_of(self.forward(step, *at), step, *at)

    def forward(self, step: int, *parts: int) -> torch.Tensor:
        y: torch.Tensor = self.handle.module.train()(to_torch(self._rows("x", step, parts)))
        wanted = np.concatenate([np.split(self.case.expected[f"y:{step}"], PARTS)[part] for part in parts])
        self.subject.judge.same(f"y of step {step + 1}", to_numpy(y), wanted)
        return y

    def backward_of(self, y: torch.Tensor, step: int, *parts: int) -> None:
        y.backward(to_torch(self._rows("dy", step, parts)) / PARTS)  # type: ignore[no-untyped-call]

    def _rows(self, name: str, step: int, parts: Sequence[int]) -> Array:
        return np.concatenate([self.case.arrays[f"{name}:{step}:{part}"] for part in parts])

    def step(self, step: int) -> None:
        self.optimiser.step()
        self.optimiser.zero_grad()
        for path, (name, factor) in self.factors():
            what, wanted = (
                f"{name.upper()} of {path} after step {step + 1}",
                self.case.expected[f"{name}:{step}:{path}"],
            )
            self.subject.judge.same(what, to_numpy(factor), wanted)

    def factors(self) -> list[tuple[str, tuple[str, torch.Tensor]]]:
        paths = self.handle.sites()
        return [(path, pair) for path in paths for pair in zip("ab", self.handle.factors(path), strict=True)]

    def trained(self) -> Array:
        """What the first batch now gives, in eval mode."""
        with torch.no_grad():
            return to_numpy(self.handle.module.eval()(to_torch(self._rows("x", 0, range(PARTS)))))
