"""A badge for each backend, as the endpoint of shields takes it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

from reports.escape import inline
from reports.report import Report
from reports.suites import BUT_GAPS, CONFORMS

_COLOURS = {CONFORMS: "brightgreen", BUT_GAPS: "yellowgreen"}
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


def badges(report: Report) -> Iterator[tuple[str, str]]:
    """File name and JSON of each backend of the newest suite."""
    seen: set[str] = set()
    for suite in report.suites[:1]:
        for name, counts in suite.matrix.totals.items():
            standing = suite.standing(name)
            told = f"{standing}, {counts['PASS']} of {counts.total()} trials pass"
            badge = {"schemaVersion": 1, "label": f"LoRA · {inline(name)}", "message": told}
            badge["color"] = _COLOURS.get(standing, "red")
            yield file_name(name, seen), json.dumps(badge) + "\n"


def file_name(name: str, seen: set[str]) -> str:
    """A name that is safe for a file; where two would be the same, a digest tells them apart."""
    safe = _SAFE.sub("-", name).strip(".-")[:80] or "backend"
    if safe.lower() in seen or safe != name:
        safe = f"{safe}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    seen.add(safe.lower())
    return f"{safe}.json"
