"""Each mutant dies, by the invariants named for it, and with the right words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck, Phase

import conformance.invariants
from conformance.backends.reference import backend as reference
from conformance.contract import Backend, Facet
from conformance.invariant import REGISTRY
from conformance.models import DEFAULT_MODELS
from conformance.mutants import MUTANTS
from conformance.record import Record, Verdict
from conformance.trial import EXAMPLES, Trial, judge_case, run, unsupported

assert conformance.invariants

PAIRS = [(mutant.id, invariant) for mutant in MUTANTS.values() for invariant in mutant.killed_by]
pytestmark = pytest.mark.filterwarnings("ignore")  # else a mutant might die of a warning by a library

SLOW = {"world-size-parity", "run-deterministic", "compile-equivalence"}  # they start processes, or a compiler
NOT_MUTATED: dict[str, str] = {}  # invariant -> why no mutant can be made for it

CAUSES = {
    ("mha-out-proj-double-delta", "forward-oracle"): "the delta is scaled by 2.000: it is doubled",
    ("alpha-not-divided-by-r", "scaling-law"): "alpha is not divided by r",
    ("delta-missing", "forward-oracle"): "it is missing",
    ("delta-subtracted", "forward-oracle"): "sign is flipped",
    ("rslora-ignored", "scaling-law"): "alpha/r where rsLoRA asks for alpha/sqrt(r)",
    ("own-orientation", "interop"): "transposed",
}


class Killed(BaseException):
    """Not an Exception: Hypothesis lets it pass instead of shrinking the case, which would take most of the time."""

    def __init__(self, record: Record) -> None:
        self.record = record


def marked(*names: str) -> ParameterSet:
    return pytest.param(*names, marks=[pytest.mark.slow] if names[-1] in SLOW else [])


def trials(backend: Backend, invariant_id: str) -> Iterator[Trial]:
    """One for each facet, model and dtype that the backend offers."""
    invariant = REGISTRY[invariant_id]
    for facet in backend.facets:
        if facet not in invariant.checks:
            continue
        check = invariant.checks[facet]
        on_models = facet in {Facet.MODEL, Facet.STORE} and check.per_model
        for on in DEFAULT_MODELS if on_models else ("",):
            for dtype in backend.manifest.dtypes:
                trial = Trial(invariant, backend, backend.manifest.name, facet, dtype, on)
                if (not check.dtypes or dtype in check.dtypes) and not unsupported(trial):
                    yield trial


def first_failure(trial: Trial, seed: int, examples: int = EXAMPLES["full"]) -> Record | None:
    """The first drawn case that breaks the invariant, as it was drawn."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=max(1, int(examples / trial.check.cost)),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(trial.check.draws(trial.subject()))
    def search(case: object) -> None:
        record = judge_case(trial, case)
        if record.verdict is not Verdict.PASS:
            raise Killed(record)

    try:
        search()
    except Killed as killed:
        return killed.record
    return None


@pytest.mark.parametrize(("mutant_id", "invariant_id"), [marked(*pair) for pair in PAIRS])
def test_mutant_dies_by_the_invariant_named_for_it(mutant_id: str, invariant_id: str) -> None:
    backend = MUTANTS[mutant_id].backend
    failures = (first_failure(trial, seed) for seed in range(3) for trial in trials(backend, invariant_id))
    assert any(failures), f"{mutant_id} survives {invariant_id}"


@pytest.mark.parametrize("invariant_id", [marked(invariant) for invariant in REGISTRY])
def test_what_mutants_are_made_of_lives(invariant_id: str) -> None:
    """Otherwise they might die of something else than their defect: of a check that is itself broken, say."""
    for trial in trials(reference, invariant_id):
        failed = first_failure(trial, seed=0, examples=4) if trial.dtype == "float32" else None
        assert failed is None, failed.failure


@pytest.mark.parametrize(("mutant_id", "invariant_id"), CAUSES)
def test_failure_names_the_defect(mutant_id: str, invariant_id: str) -> None:
    trial = next(trials(MUTANTS[mutant_id].backend, invariant_id))
    record = run(trial, profile="full", seed=0)
    assert record.verdict is Verdict.FAIL
    assert CAUSES[mutant_id, invariant_id] in record.failure
    assert record.reproduce in record.failure


def test_every_invariant_kills_a_mutant() -> None:
    named = {invariant for _, invariant in PAIRS}
    assert named - REGISTRY.keys() == set()
    assert REGISTRY.keys() - named == NOT_MUTATED.keys()


def test_each_defect_is_told_once() -> None:
    """Ids are unique by construction; two mutants with one docstring would be one mutant."""
    assert [defect for defect, times in Counter(m.defect for m in MUTANTS.values()).items() if times > 1] == []
    assert [m.id for m in MUTANTS.values() if not m.defect.endswith(".")] == []
    assert [m.id for m in MUTANTS.values() if not m.killed_by] == []
