"""The whole life of a layer: what each operation means, however many came before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Handle
from conformance.invariant import invariant
from conformance.invariants.merge import refuses, restored
from conformance.stepping import stepped
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.oracle import Oracle
from lora_ref.rounding import Bounded

any_order = invariant(
    "any-order", family="lifecycle", after=("forward-oracle", "trainable-set-exact", "unmerge-restores-base")
)

_ADAPTERS = ("default", "second", "third")
_ABOUT_ONE = {"write", "scale", "add", "switch", "delete"}
_FACTORS = (2.0, 0.5, 1.0)
_NEEDS: dict[str, tuple[Feature, ...]] = {
    "write": (),
    "forward": (),
    "train": (Feature.TRAIN_STEP,),
    "merge": (Feature.MERGE, Feature.UNMERGE),
    "unmerge": (Feature.MERGE, Feature.UNMERGE),
    "disable": (Feature.DISABLE,),
    "enable": (Feature.DISABLE,),
    "scale": (Feature.RUNTIME_SCALE,),
    "add": (Feature.MULTI_ADAPTER,),
    "switch": (Feature.MULTI_ADAPTER,),
    "join": (Feature.MULTI_ADAPTER,),
    "delete": (Feature.MULTI_ADAPTER, Feature.DELETE),
    "copy": (Feature.COPY,),
}


@dataclass(frozen=True)
class Life(Case):
    """A case, and the operations that its layer goes through: a name and a number that picks among the choices."""

    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class DrawLife(Draw):
    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        able = [name for name, needs in _NEEDS.items() if all(subject.has(need) for need in needs)]
        often = [name for name in ("add", "switch", "scale", "delete", "merge", "unmerge") if name in able]
        step = st.builds("{}:{}".format, st.sampled_from(able + often), st.integers(0, 2))
        short, long = st.lists(step, min_size=1, max_size=8), st.lists(step, min_size=12, max_size=24)
        walks = short | long
        if subject.has(Feature.MULTI_ADAPTER):  # much happens only where the active adapter is not the only one
            start = st.builds(lambda nth: ["add:0", "add:0", f"switch:{nth}"], st.integers(0, 2))
            walks |= st.builds(list.__add__, start, short)
        if subject.has(Feature.TRAIN_STEP):  # an optimiser that was there before, and goes on afterwards
            end = [f"{name}:0" for name in ("unmerge", "enable", "train") if name in able]
            walks |= st.builds(lambda between: ["train:0", *between, *end], short)
        return st.builds(_with, super().__call__(subject), walks.map(tuple))

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return Life.from_fields(given)


def _with(case: Case, steps: tuple[str, ...]) -> Case:
    return Life(**{name: getattr(case, name) for name in case.__dataclass_fields__}, steps=steps)


@dataclass
class State:
    """The model: what the layer must be by now.

    ``exact`` ends with the first optimiser step. ``drift`` is how far W may have strayed: each cycle of merge and
    unmerge may add what one cycle may (see ``restored``).
    """

    case: Case
    factors: dict[str, tuple[Array, Array]]
    drift: Array
    scales: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ADAPTERS, 1.0))
    active: tuple[str, ...] = ("default",)
    enabled: bool = True
    merged: tuple[str, ...] = ()
    written: int = 0
    exact: bool = True
    optimised: tuple[str, ...] | None = None  # whose factors the optimiser has: those active at its first step

    def oracle(self, subject: Subject, adapter: str) -> Oracle:
        return self.case.oracle_of(*self.factors[adapter], subject.manifest, factor=self.scales[adapter])

    def expected(self, subject: Subject) -> Bounded:
        """The output now; a merge may round on its way, and W may have drifted."""
        x, geometry = self.case.arrays.x, self.case.geometry
        plain = self.case.oracle(subject.manifest)
        strayed = geometry.rows(np.abs(x).astype(np.float64)) @ geometry.weight_matrix(self.drift).T
        base = plain.base_forward(x)
        total = Bounded(base.value, base.bound + geometry.y_array(strayed, x.shape))
        for oracle in (self.oracle(subject, name) for name in self.active if self.enabled):
            part = oracle.delta(x)
            merged = oracle.merged_forward(x, narrow=True).bound if self.merged else 0.0
            total = Bounded(total.value + part.value, total.bound + part.bound + merged)
        return plain.base.round(total)


@any_order.on(
    Facet.LAYER,
    cost=1 / 2,
    draws=DrawLife(kinds=("linear", "transposed"), rows=True, small=True, rslora=False, headroom=3),
)
def _(subject: Subject, case: Case) -> None:
    """Any sequence of operations leaves the layer as the closed form of its state says.

    Operations: write new A and B, run forward, train a step, merge, unmerge, disable, enable, scale, add, switch to,
    join and delete adapters, copy. Unmerging what is not merged does nothing; merging while disabled leaves the layer
    disabled; an optimiser goes on training the A and B that it was given. What is refused changes nothing, and only a
    merged layer may refuse. At the end, unmerged, the base weight is the base weight.
    """
    assert isinstance(case, Life)
    nowhere = np.zeros(case.arrays.w.shape)
    state = State(case, {"default": (case.arrays.a, case.arrays.b)}, nowhere, exact=case.tier == "exact")
    walk, done = Walk(subject, subject.attach(case), state), list[str]()
    for step in case.steps:
        name, _, number = step.partition(":")
        adapter = _target(name, int(number), state)
        if not adapter or not _possible(name, state):
            continue
        done.append(f"{name} {adapter}" if name in _ABOUT_ONE else name)
        walk.take(name, adapter)
        _judge_output(walk, " > ".join(done))
    if subject.has(Feature.UNMERGE):
        _judge_weight(walk)


def _target(name: str, number: int, state: State) -> str:
    """The adapter that a step is about, "" where there is none to choose from."""
    choices = list(state.factors)
    if name == "add":
        choices = [adapter for adapter in _ADAPTERS if adapter not in choices][:1]
    if name == "delete":
        choices = [adapter for adapter in choices if adapter not in state.active]
    return choices[number % len(choices)] if choices else ""


def _possible(name: str, state: State) -> bool:
    """Whether the step means something now; changes to a merged adapter are judged by merge-state-honest."""
    if name in {"write", "scale", "train"} and state.merged:
        return False
    wanted = {"train": state.enabled, "merge": not state.merged}
    return wanted.get(name, True)


@dataclass
class Walk:
    """The operations by name: each does something to the layer, then notes in the state what that means."""

    subject: Subject
    handle: Handle
    state: State

    def take(self, name: str, adapter: str) -> None:
        """A refusal by a merged layer changes nothing; by any other only what has nothing to do may be."""
        idle = {"unmerge": not self.state.merged, "merge": not self.state.enabled}
        try:
            getattr(self, name)(adapter)
        except Exception:
            if not self.state.merged and not idle.get(name, False):
                raise

    def _values(self) -> tuple[Array, Array]:
        self.state.written += 1
        values = self.state.case.sibling(self.state.written).arrays
        return values.a, values.b

    def write(self, adapter: str) -> None:
        values = self._values()
        self.handle.write(*values, adapter)
        self.state.factors[adapter] = values

    def forward(self, _adapter: str) -> None:
        self.handle.forward(self.state.case.arrays.x, train=not self.state.merged)

    def train(self, _adapter: str) -> None:
        """One step: what is active and known to the optimiser moves as the closed form says; what is not stays."""
        state, handle = self.state, self.handle
        before = handle.tensors()
        x, dy, lr = state.case.arrays.x, state.case.arrays.dy, 2.0**-12
        handle.step(x, dy, lr=lr, weight_decay=0.0)
        after = handle.tensors()
        state.optimised = state.active if state.optimised is None else state.optimised
        for adapter in state.factors:
            pair = tuple(after[f"{factor}:{adapter}"].value for factor in "ab")
            if adapter not in state.active:
                same = all((before[f"{f}:{adapter}"].value == v).all() for f, v in zip("ab", pair, strict=True))
                must(
                    same, f"A and B of {adapter}, which is not active, after a step", "the same values", "other values"
                )
            elif adapter in state.optimised:
                oracle = state.oracle(self.subject, adapter)
                gradients = oracle.gradients(x, dy)
                for old, new, gradient in zip(state.factors[adapter], pair, (gradients.a, gradients.b), strict=True):
                    self.subject.judge(
                        f"A or B of {adapter} after a step", new, stepped(oracle, old, gradient, lr), exact=False
                    )
            state.factors[adapter] = (pair[0], pair[1])
        state.exact = False

    def merge(self, _adapter: str) -> None:
        self.handle.merge()
        self.state.merged = self.state.active
        for adapter in self.state.merged:
            self.state.drift = self.state.drift + restored(self.state.oracle(self.subject, adapter)).bound

    def unmerge(self, _adapter: str) -> None:
        self.handle.unmerge()
        self.state.merged = ()

    def enable(self, _adapter: str) -> None:
        self.handle.enable(True)  # noqa: FBT003 - the contract's only argument
        self.state.enabled = True

    def disable(self, _adapter: str) -> None:
        self.handle.enable(False)  # noqa: FBT003 - likewise
        self.state.enabled = False

    def scale(self, adapter: str) -> None:
        factor = _FACTORS[self.state.written % 3]
        self.handle.set_scale(factor, adapter)
        self.state.scales[adapter] = factor
        self.state.written += 1

    def add(self, adapter: str) -> None:
        values = self._values()
        self.handle.add(adapter, self.state.case.spec, *values)
        self.state.factors[adapter], self.state.scales[adapter] = values, 1.0

    def switch(self, adapter: str) -> None:
        self.handle.activate(adapter)
        self.state.active = (adapter,)

    def join(self, _adapter: str) -> None:
        self.handle.activate(*self.state.factors)
        self.state.active = tuple(self.state.factors)

    def delete(self, adapter: str) -> None:
        self.handle.delete(adapter)
        del self.state.factors[adapter]
        if self.state.optimised is not None:
            self.state.optimised = tuple(other for other in self.state.optimised if other != adapter)

    def copy(self, adapter: str) -> None:
        self.handle = self.handle.copy(pickled=adapter != "default")
        self.state.optimised = None  # a copy has an optimiser of its own


def _judge_output(walk: Walk, done: str) -> None:
    case, state = walk.state.case, walk.state
    try:
        y = walk.handle.forward(case.arrays.x)
    except Exception:
        if state.merged:
            return  # a merged layer may refuse what it can no longer answer rightly
        raise
    walk.subject.judge(f"y after {done}", y, state.expected(walk.subject), exact=state.exact, spec=case.spec)


def _judge_weight(walk: Walk) -> None:
    state = walk.state
    if state.merged:
        if not state.enabled:
            walk.enable("")  # some libraries unmerge only while enabled
        refuses(walk.handle.unmerge)  # refused where disabling has unmerged; the weight itself is judged below
    weight = Bounded(state.case.arrays.w.astype(np.float64), state.drift)
    walk.subject.judge("W in the end", walk.handle.effective_weight(), weight, exact=state.exact)
