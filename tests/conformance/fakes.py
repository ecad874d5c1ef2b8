"""Tiny invariants, and backends that each misbehave in one way; importing this replaces the registry."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from conformance.cases import Case
from conformance.contract import Array, Backend, Facet, Feature, Gap, Grads, Manifest, Weights
from conformance.invariant import REGISTRY, invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.spec import LoraSpec

REGISTRY.clear()
answers = invariant("answers", family="basics")
rank_two = invariant("rank-two", family="basics", after=("answers",))
grouped = invariant("grouped", family="rest", after=("rank-two",))
_DRAW = Draw(kinds=("linear",), tiers=("bounded",), rank=2, rows=True)


@answers.on(Facet.OPERATOR, draws=_DRAW)
def _(subject: Subject, case: Case) -> None:
    """The operator gives a y."""
    must(subject.vjp(case).y is not None, "y", "an array", "nothing")


@rank_two.on(Facet.OPERATOR, draws=_DRAW)
def _(subject: Subject, case: Case) -> None:
    """The operator gives a y of zeros."""
    must(not subject.vjp(case).y.any(), "y", "zeros", "something else")


@grouped.on(Facet.OPERATOR, draws=_DRAW, needs=[Feature.GROUPED_CONV])
def _(subject: Subject, case: Case) -> None:
    """Nothing here offers grouped convolutions."""


class Operator:
    def __init__(self, act: Callable[[LoraSpec], object], value: float) -> None:
        self.act, self.value = act, value

    def vjp(self, spec: LoraSpec, weights: Weights, x: Array, dy: Array) -> Grads:
        self.act(spec)
        return Grads(np.full_like(dy, self.value), None, None, None)


def _spin(_: LoraSpec) -> None:
    while True:
        pass


def _refuse(spec: LoraSpec) -> None:
    if spec.r == 3:
        raise RuntimeError("no [red]rank[/red] 3 | `here`\x1b[31m <b>\nsecond line")


def _refuse_all(_: LoraSpec) -> None:
    raise RuntimeError("no [red]rank[/red] | `here`\x1b[31m <b>\nsecond line")


def _make(
    name: str, act: Callable[[LoraSpec], object] = lambda _: None, value: float = 0.0, gaps: tuple[Gap, ...] = ()
) -> Backend:
    return Backend(Manifest(name, "1.0", gaps=gaps), operator=Operator(act, value))


_CASE = {"in_features": 3, "out_features": 2, "r": 3, "alpha": 6.0, "tier": "bounded"}
_GAP = Gap("rank-two", "notyet", "rank 3 is | refused", _CASE, {"r": (3,)}, "https://example.org/1", "RuntimeError")

good = _make("good")
exits = _make("exits", lambda _: os._exit(1))
segfaults = _make("segfaults", lambda _: ctypes.string_at(0))
spins = _make("spins", _spin)
sleeps = _make("sleeps", lambda _: time.sleep(1000))
refuses = _make("refuses", _refuse_all)
leaves = _make("leaves", lambda _: sys.exit(0))
wrong = _make("wrong", value=1.0)
gap = _make("gap", _refuse, gaps=(_GAP, replace(_GAP, invariant="answers")))
stale = _make("stale", gaps=(_GAP,))
lost_gap = _make("lost_gap", gaps=(replace(_GAP, invariant="no-such"),))
slow = _make("slow", lambda _: time.sleep(0.3))
twin = _make("good")
nothing = object()
