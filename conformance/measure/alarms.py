"""How often the suite is wrong about a right implementation."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.invariant import REGISTRY
from conformance.models import DEFAULT_MODELS
from conformance.plan import make
from conformance.record import Record
from conformance.trial import run

BACKENDS = ("reference", "hooks")


@dataclass(frozen=True)
class Round:
    """All trials of one backend with one seed."""

    backend: str
    seed: int


def judge(asked: Round) -> list[Record]:
    """Every record of the round."""
    plan = make([asked.backend], DEFAULT_MODELS, REGISTRY)
    return [run(trial, profile="full", seed=asked.seed) for trial in plan.trials]
