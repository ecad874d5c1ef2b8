"""What a run will judge, in order: backends x invariants x facets x dtypes x models."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import conformance.invariants  # noqa: F401 - fills the registry
from conformance.contract import Backend, Facet
from conformance.discovery import LoadError, load
from conformance.invariant import REGISTRY, Check, Invariant
from conformance.record import Record, Verdict
from conformance.trial import Trial

IMPORT = "import"
_STATEMENT = "The backend can be imported."
_ON_MODELS = {Facet.MODEL, Facet.STORE}


@dataclass(frozen=True)
class Broken:
    """A backend that cannot be judged: one record says why, so that it is never simply absent."""

    reference: str
    why: str
    trace: str = field(default="", repr=False)

    @property
    def id(self) -> str:
        return f"{self.reference}/{IMPORT}"

    def record(self) -> Record:
        lines = [f"{IMPORT}: {_STATEMENT}", f"  backend    {self.reference}", f"  raised     {self.why}"]
        record = Record(self.reference, "", IMPORT, IMPORT, "", "", "", Verdict.ERROR, failure="\n".join(lines))
        record.cause, record.traceback = self.why, self.trace
        return record


@dataclass(frozen=True)
class Plan:
    trials: tuple[Trial, ...]
    broken: tuple[Broken, ...]
    invariants: tuple[Invariant, ...]
    backends: tuple[tuple[str, Backend], ...]

    @property
    def items(self) -> tuple[Trial | Broken, ...]:
        """All that a run judges; what cannot be judged comes first."""
        return (*self.broken, *self.trials)

    def header(self) -> dict[str, Any]:
        """What a results file says of the plan."""
        named = [{"id": i.id, "family": i.family, "statement": i.statement, "after": i.after} for i in self.invariants]
        judged = [
            {
                "reference": reference,
                "name": backend.manifest.name,
                "version": backend.manifest.version,
                "features": sorted(backend.manifest.features),
            }
            for reference, backend in self.backends
        ]
        lost = [{"reference": broken.reference, "error": broken.why} for broken in self.broken]
        return {"invariants": named, "digest": digest(self.invariants), "backends": judged + lost}


def digest(invariants: Iterable[Invariant]) -> str:
    """Changes with any statement: only results with equal digests judged the same thing."""
    texts = sorted(f"{i.id}\0{' '.join(i.text.split())}" for i in invariants)
    return hashlib.sha256("\0\0".join(texts).encode()).hexdigest()


def make(references: Sequence[str], models: Sequence[str], registry: Mapping[str, Invariant] = REGISTRY) -> Plan:
    """Import the backends, and list their trials: backend by backend, the basics first.

    Raises:
        UsageError: a reference that names nothing.
    """
    backends: dict[str, Backend] = {}
    broken: list[Broken] = []
    taken: dict[str, str] = {}
    for reference in dict.fromkeys(references):
        try:
            backend = load(reference)
        except LoadError as error:
            broken.append(Broken(reference, *_told(error)))
            continue
        if complaint := _complaint(backend, taken, registry):
            broken.append(Broken(reference, complaint))
            continue
        taken[backend.manifest.name] = reference
        backends[reference] = backend
    trials = tuple(
        Trial(invariant, backend, reference, facet, dtype, on)
        for reference, backend in backends.items()
        for invariant in registry.values()
        for facet in backend.facets
        if facet in invariant.checks
        for on, dtype in _places(invariant.checks[facet], facet, backend, models)
    )
    return Plan(trials, tuple(broken), tuple(registry.values()), tuple(backends.items()))


def _places(check: Check, facet: Facet, backend: Backend, models: Sequence[str]) -> list[tuple[str, str]]:
    """Models and dtypes; models of real size only in float32, tiny ones in one half precision, as layers show both."""
    dtypes = [dtype for dtype in backend.manifest.dtypes if not check.dtypes or dtype in check.dtypes]
    per_model = facet in _ON_MODELS and check.per_model
    return [
        (on, dtype)
        for on in (dict.fromkeys(models) if per_model else ("",))
        for dtype in dtypes
        if not on or dtype == "float32" or (on.startswith("tiny-") and dtype == "bfloat16")
    ]


def _complaint(backend: Backend, taken: Mapping[str, str], registry: Mapping[str, Invariant]) -> str:
    """Why a backend that can be imported cannot be judged, or ""."""
    manifest = backend.manifest
    if manifest.name in taken:
        return f"its name {manifest.name!r} is already that of {taken[manifest.name]!r}: give it another"
    unknown = [gap.invariant for gap in manifest.gaps if gap.invariant not in registry]
    if unknown:
        return f"declares a gap in {unknown[0]!r}, which is no invariant"
    return ""


def _told(error: LoadError) -> tuple[str, str]:
    cause = error.__cause__
    if cause is None:
        return str(error), ""
    why = " ".join(f"{type(cause).__name__}: {cause}".split())
    return why, "".join(traceback.format_exception(cause))
