"""``reproduce``: judge exactly one case."""

from __future__ import annotations

import json
from typing import Any

from conformance.command_line import hint
from conformance.contract import Backend, Facet
from conformance.discovery import UsageError, check_name, load
from conformance.invariant import REGISTRY, Invariant
from reports.escape import plain


def execute(invariant: str, reference: str, facet: str, case: str) -> int:
    """1 where the invariant is broken, as was to be shown; 0 where it holds.

    Raises:
        UsageError: something that does not exist, or that does not fit.
        LoadError: the backend cannot be imported.
    """
    from conformance.trial import Trial, replay

    check_name(reference)
    where, fields = _facet(facet), _fields(case)
    backend = load(reference)
    statement = _invariant(invariant)
    if where not in statement.checks:
        offered = ", ".join(sorted(statement.checks))
        raise UsageError(f"{invariant} is not judged on the facet {facet!r}, only on: {offered}")
    _fits(backend, where, fields)
    trial = Trial(statement, backend, reference, where, fields.get("dtype", "float32"), str(fields.get("model", "")))
    try:
        trial.check.draws.rebuild(fields)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--case: {error}") from None
    record = replay(trial, fields)
    if not record.verdict.red:
        print(f"{invariant} holds in this case")  # noqa: T201
        return 0
    print(plain(f"{record.failure}\n{record.traceback}".rstrip()))  # noqa: T201
    return 1


def _facet(name: str) -> Facet:
    try:
        return Facet(name)
    except ValueError:
        raise UsageError(f"unknown facet {name!r}: one of {', '.join(Facet)}") from None


def _invariant(name: str) -> Invariant:
    import conformance.invariants  # noqa: F401 - fills the registry

    if name in REGISTRY:
        return REGISTRY[name]
    near = hint(name, REGISTRY, "see `lora-conformance list invariants`")
    raise UsageError(f"unknown invariant {name!r}: {near}")


def _fields(case: str) -> dict[str, Any]:
    try:
        fields = json.loads(case)
    except ValueError as error:
        raise UsageError(f"--case is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UsageError("--case must be a JSON object, as a failure prints it")
    return fields


def _fits(backend: Backend, facet: Facet, fields: dict[str, Any]) -> None:
    manifest = backend.manifest
    if facet not in backend.facets:
        raise UsageError(f"backend {manifest.name!r} does not offer {facet}, only: {', '.join(backend.facets)}")
    dtype = fields.get("dtype", "float32")
    if dtype not in manifest.dtypes:
        raise UsageError(f"backend {manifest.name!r} does not declare {dtype}, only: {', '.join(manifest.dtypes)}")
