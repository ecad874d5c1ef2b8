"""Caches: nothing that was computed outlives what it was computed from."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature
from conformance.invariant import invariant
from conformance.invariants.adapters import KINDS
from conformance.several import DrawSeveral, Several
from conformance.subject import Subject
from lora_ref.oracle import Oracle

cache_fresh = invariant("cache-fresh", family="adapters", after=("forward-oracle", "grad-oracle"))

_NEEDS: dict[str, Feature | None] = {
    "write a": None,
    "write b": None,
    "other input": None,
    "train mode": None,
    "load": Feature.TRAIN_STEP,
    "rescale": Feature.RUNTIME_SCALE,
    "same name": Feature.DELETE,
    "merge": Feature.UNMERGE,
    "disable": Feature.DISABLE,
}


@dataclass(frozen=True)
class _DrawLife(DrawSeveral):
    """Convolutions in the exact tier only: how they accumulate the gradient of x in narrow dtypes is torch's affair."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return super().__call__(subject).filter(lambda case: case.kind != "conv" or case.tier == "exact")


@cache_fresh.on(
    Facet.LAYER,
    cost=3,
    draws=_DrawLife(kinds=KINDS, rows=True, small=True, headroom=3, steps=tuple(_NEEDS), others=(1, 1)),
)
def _(subject: Subject, case: Case) -> None:
    """Nothing that was computed before outlives what it was computed from: each call sees A, B, s and x as they are.

    Between calls in eval and training mode: A and B are written in place; replaced by a loaded state; rescaled; merged,
    unmerged and changed; deleted and added anew under the same name with another rank; x is another one.
    """
    assert isinstance(case, Several)
    life = _Life(subject, case)
    life.judge("at first")
    for operation in case.operations:
        need = _NEEDS[operation]
        if need is None or subject.has(need):
            life.apply(operation)
            life.judge(f"after {operation}")


class _Life:
    """A handle, and what its adapter must be by now: ``nth`` of the case's, with these signs, times ``factor``."""

    def __init__(self, subject: Subject, case: Several) -> None:
        self.subject, self.case, self.handle = subject, case, subject.attach(case)
        self.name, self.nth, self.signs, self.factor, self.x = "default", 0, (1, 1), 1.0, case.arrays.x

    def values(self) -> tuple[Array, Array]:
        _, a, b = self.case.adapters[self.nth]
        return a if self.signs[0] > 0 else -a, b if self.signs[1] > 0 else -b

    def apply(self, operation: str) -> None:
        handle, case = self.handle, self.case
        if operation in {"write a", "write b", "load"}:
            self.signs = (-self.signs[0], self.signs[1]) if operation == "write a" else (self.signs[0], -self.signs[1])
            change = handle.load if operation == "load" else handle.write
            change(*self.values(), self.name)
        elif operation == "rescale":
            self.factor = 0.5 if self.factor == 1.0 else 1.0
            handle.set_scale(self.factor, self.name)
        elif operation == "other input":
            self.x = -self.x if case.geometry.differentiable else (self.x + 1) % case.in_features
        elif operation == "train mode":
            self._judge_vjp("in training mode", train=True)
        elif operation == "disable":
            handle.enable(on=False)
            base = case.oracle(self.subject.manifest).base_forward(self.x)
            self.subject.judge("y while disabled", handle.forward(self.x), base, exact=case.tier == "exact")
            handle.enable(on=True)
        elif operation == "merge":
            self._merge()
        elif self.subject.has(Feature.MULTI_ADAPTER):
            self._replace()

    def _merge(self) -> None:
        """Merged, the sum of base and delta is one weight, whose rounding has a bound of its own."""
        if self.case.tier == "bounded" or self.case.kind == "conv":
            return
        for when in ("while merged", "while merged again, with another B"):
            self.handle.forward(self.x)
            self.handle.merge()
            expected = self._oracle().merged_forward(self.x)
            self.subject.judge(f"y {when}", self.handle.forward(self.x), expected, exact=True)
            self.handle.unmerge()
            self.apply("write b")

    def _replace(self) -> None:
        """An adapter gives way to another one of the same name."""
        if self.name == "default":
            self._add()
            self.judge("of a second adapter")
        self.handle.activate("default")
        self.handle.delete("second")
        self._add()

    def _add(self) -> None:
        self.name, self.nth, self.signs, self.factor = "second", 1 - self.nth, (1, 1), 1.0
        self.handle.add(self.name, *self.case.adapters[self.nth])
        self.handle.activate(self.name)

    def _oracle(self) -> Oracle:
        spec, manifest = self.case.adapters[self.nth][0], self.subject.manifest
        return self.case.oracle_of(*self.values(), manifest, factor=self.factor, spec=spec)

    def judge(self, when: str) -> None:
        oracle, x = self._oracle(), self.x
        delta, spec = oracle.delta(x).value, self.case.adapters[self.nth][0]
        exact = self.case.tier == "exact"
        y = self.handle.forward(x)
        self.subject.judge(f"y {when}", y, oracle.forward(x), exact=exact, delta=delta, spec=spec)
        self._judge_vjp(when, train=False)

    def _judge_vjp(self, when: str, *, train: bool) -> None:
        """The handle tells the gradients of the adapter "default"; the output, and dx, of any."""
        exact, judge = self.case.tier == "exact", self.subject.judge
        grads = self.handle.vjp(self.x, self.case.arrays.dy, train=train)
        judge(f"y with its graph {when}", grads.y, self._oracle().forward(self.x), exact=exact)
        expected = self._oracle().gradients(self.x, self.case.arrays.dy)
        if expected.x is not None:
            judge(f"dx {when}", grads.dx, expected.x, exact=exact)
        if self.name == "default":
            judge(f"dA {when}", grads.da, expected.a, exact=exact)
            judge(f"dB {when}", grads.db, expected.b, exact=exact)
