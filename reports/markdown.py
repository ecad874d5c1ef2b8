"""The same comparison as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from reports.escape import fenced, inline, markdown
from reports.results import VERDICTS, Record, Results
from reports.summary import (
    LEGEND,
    NOTHING,
    SHORT,
    Matrix,
    by_message,
    follows,
    gaps,
    matrix,
    message,
    records_of,
    roots,
    unexercised,
)


def render(runs: Sequence[Results]) -> str:
    """Text that came from a backend is escaped: it starts no tag, no link and no cell."""
    return "\n\n".join(["# LoRA conformance", *body(runs)]) + "\n"


def body(runs: Sequence[Results]) -> list[str]:
    """The parts below the title."""
    made, records = matrix(runs), records_of(runs)
    return [_about(runs), _table(made), _legend(), *_failures(records), *_gaps(records), *_idle(runs)]


def _about(runs: Sequence[Results]) -> str:
    lines = []
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        device = f"{run.device.get('name')} ({run.device.get('cores')} cores)"
        asked = f"profile {run.profile}, seed {run.seed}, models {', '.join(run.models)}"
        lines.append(
            markdown(f"suite {run.suite} · {asked} · {run.started} · {run.seconds:.1f} s · {device} · {versions}")
        )
    return "\n\n".join(lines)


def _table(made: Matrix) -> str:
    names = list(made.backends)
    heads = [markdown(f"{name} {version}") for name, version in made.backends.items()]
    rows = [_row(["invariant", *heads]), _row(["---"] * (len(names) + 1))]
    for family, invariants in made.rows.items():
        shown = [i for i in invariants if any((i.id, name) in made.cells for name in names)]
        if shown:
            rows.append(_row([f"**{markdown(family)}**", *[""] * len(names)]))
        for invariant in shown:
            cells = (made.cells.get((invariant.id, name)) for name in names)
            rows.append(_row([markdown(invariant.id), *(cell.text if cell else NOTHING for cell in cells)]))
    for verdict in ("PASS", *(v for v in VERDICTS if v != "PASS")):
        if any(counts[verdict] for counts in made.totals.values()):
            counts = [str(made.totals[name][verdict]) if name in made.totals else NOTHING for name in names]
            rows.append(_row([f"*{SHORT.get(verdict, verdict)} in all*", *counts]))
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _legend() -> str:
    return "; ".join(f"{word}: {what}" for word, what in LEGEND.items()) + "; n/m: in n of m trials."


def _failures(records: Sequence[Record]) -> list[str]:
    parts: list[str] = []
    for root in roots(records):
        parts.append(f"### {markdown(root.backend)}: {markdown(root.invariant)}")
        for record, more in by_message(root.records):
            parts.append(fenced(f"{record.verdict} {message(record)}"))
            if record.verdict == "ERROR" and record.traceback:
                parts.append(
                    f"<details><summary>traceback</summary>\n\n{fenced(record.traceback.rstrip())}\n\n</details>"
                )
            if more:
                parts.append(f"and {more} more with the same cause on other facets, dtypes or models")
        parts += [markdown(line) for line in follows(root)]
    return ["## Failures", *parts] if parts else []


def _gaps(records: Sequence[Record]) -> list[str]:
    found = gaps(records)
    if not found:
        return []
    rows = [_row(["backend", "invariant", "trials", "what happens", "upstream"]), _row(["---"] * 5)]
    for record, trials in found:
        links = " ".join(_link(url) for url in inline(record.upstream).split())
        rows.append(
            _row([markdown(record.backend), markdown(record.invariant), str(trials), markdown(record.reason), links])
        )
    return ["## Known gaps", "\n".join(rows)]


def _idle(runs: Sequence[Results]) -> list[str]:
    lines = [f"- {markdown(f'{name}: ' + ', '.join(features))}" for name, features in unexercised(runs).items()]
    return ["## Declared, and exercised by no invariant in this run", "\n".join(lines)] if lines else []


def _link(url: str) -> str:
    safe = url.startswith("https://") and not set(url) & set("<>|`\"'()[] ")
    return f"<{url}>" if safe else markdown(url)
