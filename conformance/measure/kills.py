"""Which invariants find which mutants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import conformance.invariants  # noqa: F401 - fills the registry
from conformance.contract import Facet
from conformance.invariant import REGISTRY
from conformance.models import DEFAULT_MODELS
from conformance.mutants import MUTANTS
from conformance.record import Verdict
from conformance.trial import Trial, run

KILLED = {Verdict.FAIL, Verdict.ERROR}


@dataclass(frozen=True)
class Job:
    """One mutant before one invariant; small, so that it can be sent to a process."""

    mutant: str
    invariant: str
    profile: str
    seed: int


def trials(mutant: str, invariant: str) -> Iterator[Trial]:
    """The invariant on every facet, dtype and tiny model that the mutant offers."""
    backend, checks = MUTANTS[mutant].backend, REGISTRY[invariant].checks
    for facet in backend.facets:
        if facet not in checks:
            continue
        on_models = facet in {Facet.MODEL, Facet.STORE} and checks[facet].per_model
        for on in DEFAULT_MODELS if on_models else ("",):
            for dtype in checks[facet].dtypes or backend.manifest.dtypes:
                if dtype in backend.manifest.dtypes:
                    yield Trial(REGISTRY[invariant], backend, f"mutant:{mutant}", facet, dtype, on)


def killed(job: Job) -> bool:
    """Whether any trial of the invariant is red; the first that is settles it."""
    asked = partial(run, profile=job.profile, seed=job.seed, shrink=False)
    found = (asked(trial) for trial in trials(job.mutant, job.invariant))
    return any(record.verdict in KILLED for record in found)


def named_jobs(profile: str, seeds: int) -> list[Job]:
    """Every mutant before the invariants named for it, with each seed."""
    named = [(mutant.id, invariant) for mutant in MUTANTS.values() for invariant in mutant.killed_by]
    return [Job(mutant, invariant, profile, seed) for mutant, invariant in named for seed in range(seeds)]


def all_jobs(profile: str) -> list[Job]:
    """Every mutant before every invariant that can judge it, once."""
    return [
        Job(mutant, invariant, profile, 0)
        for mutant in MUTANTS
        for invariant in REGISTRY
        if next(trials(mutant, invariant), None) is not None
    ]
