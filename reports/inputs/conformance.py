"""Conformance runs as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from reports.results import Results
from reports.suites import Suite
from reports.summary import red_count

Rows = list[dict[str, Any]]
_SAME = (
    *("backend", "version", "invariant", "family", "facet", "dtype", "on", "verdict", "red", "examples", "seconds"),
    *("fraction", "reason", "upstream", "cause", "failure", "reproduce", "traceback"),
)


def rows(suites: Sequence[Suite]) -> dict[str, Rows]:
    """Rows by table."""
    return {
        "conformance": [row for suite in suites for row in _trials(suite)],
        "invariants": [row for suite in suites for row in _invariants(suite)],
        "backends": [row for suite in suites for row in _backends(suite)],
        "conformance_runs": [_run(run) for suite in suites for run in suite.runs],
    }


def _about(suite: Suite) -> dict[str, Any]:
    return {"suite": suite.version, "digest": suite.digest}


def _trials(suite: Suite) -> Iterable[dict[str, Any]]:
    for run in suite.runs:
        for record in run.records:
            row = {name: getattr(record, name) for name in _SAME}
            more = {"case": json.dumps(dict(record.case)) if record.case else "", "after": " ".join(record.after)}
            about = {"run": str(run.path), "profile": run.profile, "shown": id(record) in suite.chosen}
            yield _about(suite) | about | row | more


def _invariants(suite: Suite) -> Iterable[dict[str, Any]]:
    for one in suite.invariants.values():
        told = {"invariant": one.id, "family": one.family, "statement": one.statement, "after": " ".join(one.after)}
        yield _about(suite) | told


def _backends(suite: Suite) -> Iterable[dict[str, Any]]:
    made = suite.matrix
    for name, version in dict.fromkeys(backend for run in suite.runs for backend in run.backends.items()):
        label = suite.label(name, version)
        counts = made.totals.get(label)
        records = [record for record in suite.records if record.backend == label]
        profiles = dict.fromkeys(run.profile for run in suite.shown if any(r.backend == label for r in run.records))
        row = {
            "backend": name,
            "version": version,
            "standing": suite.standing(label),
            "profiles": " and ".join(profiles),
            "worst_fraction": made.worst.get(label),
            "unexercised": " ".join(suite.unexercised.get(label, ())),
        }
        if counts is not None:
            row |= {"trials": counts.total(), "passed": counts["PASS"], "gaps": counts["GAP"]}
            row |= {"red": red_count(counts), "unsupported": counts["UNSUPPORTED"]}
            row["red_invariants"] = len({record.invariant for record in records if record.red})
        yield _about(suite) | row


def _run(run: Results) -> dict[str, Any]:
    device = run.device
    return {
        "run": str(run.path),
        "suite": run.suite,
        "digest": run.digest,
        "started": run.started,
        "seconds": run.seconds,
        "profile": run.profile,
        "seed": run.seed,
        "models": " ".join(run.models),
        "backends": ", ".join(f"{name} {version}".strip() for name, version in run.backends.items()),
        "trials": len(run.records),
        "device": f"{device.get('name')}, {device.get('cores')} cores, {device.get('system', 'unknown system')}",
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "command": run.command,
    }
