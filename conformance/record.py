"""What a run says of one invariant: the verdict and what led to it, as one line of JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA = 1


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105 - the statement held in every case that was drawn
    FAIL = "FAIL"  # a counterexample was found
    ERROR = "ERROR"  # the backend raised where the contract wants an answer, or cannot be imported
    CRASH = "CRASH"  # the process died
    TIMEOUT = "TIMEOUT"  # no answer within the limit
    GAP = "GAP"  # known to be broken, declared in the manifest, and broken still
    GAP_CLOSED = "GAP-CLOSED"  # declared as broken, and it holds: the declaration is out of date
    UNSUPPORTED = "UNSUPPORTED"  # the backend does not claim the feature

    @property
    def red(self) -> bool:
        return self not in {Verdict.PASS, Verdict.GAP, Verdict.UNSUPPORTED}


@dataclass
class Record:
    """One invariant on one facet of one backend in one dtype (and on one model, where the facet needs one).

    examples: cases judged. seconds: wall time. fraction: largest error as a share of its bound, None without any.
    reason: why it is unsupported or a gap. failure: the message, ready to print. after: red invariants that this one
    rests on. case, reproduce, cause, traceback: parts of the failure, for reports. features: what the cases exercised.
    """

    backend: str
    version: str
    invariant: str
    family: str
    facet: str
    dtype: str
    on: str
    verdict: Verdict
    examples: int = 0
    seconds: float = 0.0
    fraction: float | None = None
    reason: str = ""
    upstream: str = ""
    failure: str = ""
    cause: str = ""
    case: dict[str, Any] = field(default_factory=dict)
    reproduce: str = ""
    traceback: str = ""
    after: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        return (self.backend, self.invariant, self.facet, self.dtype, self.on)
