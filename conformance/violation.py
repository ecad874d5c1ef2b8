"""A broken invariant, told so that its reader can act: what, where, by how much, why, and how to see it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Finding:
    """One comparison that failed; numbers are those of the worst element."""

    quantity: str
    expected: str
    got: str
    error: float | None = None
    bound: float | None = None
    where: tuple[int, ...] = ()
    wrong: int = 0
    of: int = 0
    cause: str = ""


class Violation(AssertionError):  # noqa: N818 - it is what was found, not something that went wrong
    """Raised by the judge. The trial that catches it adds the invariant, the backend and the case."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.quantity}: expected {finding.expected}, got {finding.got}")
        self.finding = finding


def must(condition: object, quantity: str, expected: object, got: object, cause: str = "") -> None:
    """A statement that is true or false, without a bound.

    Raises:
        Violation: the condition is false.
    """
    if not condition:
        raise Violation(Finding(quantity, str(expected), str(got), cause=cause))


@dataclass
class Failure:
    """Everything that a failure's message holds; ``text`` is what terminals and records show."""

    invariant: str
    statement: str
    backend: str
    facet: str
    dtype: str
    case: dict[str, Any]
    reproduce: str
    finding: Finding | None = None
    error: str = ""  # where the backend raised: the exception's type and message
    traceback: str = field(default="", repr=False)

    def text(self) -> str:
        lines = [f"{self.invariant}: {self.statement}", f"  backend    {self.backend} · {self.facet} · {self.dtype}"]
        fields = "  ".join(f"{k}={_plain(v)}" for k, v in self.case.items())
        lines.append(f"  case       {fields}")
        if self.finding is not None:
            lines += _finding_lines(self.finding)
        if self.error:
            lines.append(f"  raised     {self.error}")
        lines.append(f"  reproduce  {self.reproduce}")
        return "\n".join(lines)


def _finding_lines(finding: Finding) -> list[str]:
    index = f"[{', '.join(map(str, finding.where))}]" if finding.of else ""
    lines = [
        f"  judged     {finding.quantity}{index}",
        f"  expected   {finding.expected}",
        f"  got        {finding.got}",
    ]
    if finding.error is not None:
        bound = "exact: any difference counts" if finding.bound == 0 else f"bound {finding.bound:.3g}"
        lines.append(f"  error      {finding.error:.3g}   {bound}   {finding.wrong} of {finding.of} elements wrong")
    if finding.cause:
        lines.append(f"  cause      {finding.cause}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(_plain, value)) or "()"
    return f"{value:g}" if isinstance(value, float) else str(value)
