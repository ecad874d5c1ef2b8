"""How much is judged is written down, so that no invariant, facet or dtype vanishes without anyone's noticing.

``python tests/conformance/test_pinned.py`` writes the file anew after a change that was meant.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from conformance.models import DEFAULT_MODELS
from conformance.plan import make
from conformance.trial import unsupported

PINNED = Path(__file__).with_name("pinned.json")
BACKENDS = ("reference", "hooks", "fused", "fused-linear", "numpy", "peft", "peft+fused", "loralib")


def counts() -> dict[str, dict[str, int]]:
    """Per backend: invariants that judge it, trials, and gaps declared."""
    plan = make(BACKENDS, DEFAULT_MODELS)
    assert not plan.broken
    judged: dict[str, set[str]] = {}
    trials: Counter[str] = Counter()
    for trial in plan.trials:
        if not unsupported(trial):
            judged.setdefault(trial.reference, set()).add(trial.invariant.id)
            trials[trial.reference] += 1
    gaps = {name: len(backend.manifest.gaps) for name, backend in plan.backends}
    return {n: {"invariants": len(judged[n]), "trials": trials[n], "gaps": gaps[n]} for n in BACKENDS}


def test_as_much_is_judged_as_before() -> None:
    assert counts() == json.loads(PINNED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PINNED.write_text(json.dumps(counts(), indent=2) + "\n", encoding="utf-8")
