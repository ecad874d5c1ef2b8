"""Each mutant dies, by the invariants named for it."""

from __future__ import annotations

import pytest

import conformance.invariants
from conformance.contract import Facet
from conformance.invariant import REGISTRY
from conformance.models import DEFAULT_MODELS
from conformance.mutants import MUTANTS
from conformance.record import Record, Verdict
from conformance.trial import Trial, run

assert conformance.invariants


def judged(mutant_id: str, invariant_id: str) -> list[Record]:
    """Records of the invariant on every facet that the mutant offers."""
    backend, invariant = MUTANTS[mutant_id].backend, REGISTRY[invariant_id]
    records = []
    for facet in backend.facets:
        if facet not in invariant.checks:
            continue
        check = invariant.checks[facet]
        on_models = facet in {Facet.MODEL, Facet.STORE} and check.per_model
        for on in DEFAULT_MODELS if on_models else ("",):
            for dtype in check.dtypes or backend.manifest.dtypes:
                records.append(run(Trial(invariant, backend, mutant_id, facet, dtype, on), profile="full", seed=0))
    return records


@pytest.mark.parametrize(
    ("mutant_id", "invariant_id"),
    [(mutant.id, invariant) for mutant in MUTANTS.values() for invariant in mutant.killed_by],
)
def test_mutant_dies_by_the_invariant_named_for_it(mutant_id: str, invariant_id: str) -> None:
    records = judged(mutant_id, invariant_id)
    verdicts = {record.verdict for record in records}
    assert verdicts & {Verdict.FAIL, Verdict.ERROR}, f"{mutant_id} survives {invariant_id}: {sorted(verdicts)}"
