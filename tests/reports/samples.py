"""Results files as a run writes them, small."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INVARIANTS = [
    {"id": "forward", "family": "basics", "statement": "y is right.", "after": []},
    {"id": "gradients", "family": "basics", "statement": "Gradients are right.", "after": ["forward"]},
    {"id": "training", "family": "use", "statement": "Training works.", "after": ["gradients"]},
]


def record(backend: str, invariant: str, verdict: str, **more: Any) -> dict[str, Any]:
    family = next((i["family"] for i in INVARIANTS if i["id"] == invariant), invariant)
    where = {"facet": "layer", "dtype": "float32", "on": ""}
    named = {"backend": backend, "version": "1.0", "invariant": invariant, "family": family}
    return {"type": "record", **named, **where, "verdict": verdict, **more}


def write(
    path: Path,
    records: Sequence[dict[str, Any]],
    *,
    header: dict[str, Any] | None = None,
    footer: dict[str, Any] | None = None,
    whole: bool = True,
) -> Path:
    names = dict.fromkeys(r["backend"] for r in records)
    head = {
        "type": "header",
        "schema": 1,
        "suite": "0.1.0",
        "started": "2026-01-01T00:00:00+00:00",
        "invariants": INVARIANTS,
        "digest": "d",
        "backends": [{"reference": name, "name": name, "version": "1.0"} for name in names],
        "profile": "quick",
        "seed": 0,
        "models": ["tiny-bert"],
        "trials": len(records),
        "device": {"kind": "cpu", "name": "a processor", "cores": 2},
        "versions": {"python": "3.11"},
        "command": "lora-conformance run",
        **(header or {}),
    }
    foot = {"type": "footer", "counts": {}, "records": len(records), "seconds": 1.5, "exitstatus": 1, **(footer or {})}
    lines = [head, *records, *([foot] if whole else [])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
