"""Results in numbers and order: the cells of the matrix, the roots of failures, the gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from reports.results import RED, VERDICTS, Invariant, Record, Results

NOTHING = "-"
SHORT = {"GAP-CLOSED": "CLOSED", "UNSUPPORTED": "unsup."}
LEGEND = {
    "PASS": "holds in every case drawn",
    "FAIL": "a counterexample was found",
    "ERROR": "raised, or cannot be imported",
    "CRASH": "the process died",
    "TIMEOUT": "no answer in time",
    "CLOSED": "declared as a gap, yet it holds",
    "GAP": "known and declared",
    "unsup.": "feature not declared",
    NOTHING: "facet not offered",
}


@dataclass(frozen=True)
class Cell:
    """One invariant on one backend: the worst verdict, and in how many of its trials it was reached."""

    verdict: str = ""
    count: int = 0
    total: int = 0

    @property
    def text(self) -> str:
        if not self.verdict:
            return NOTHING
        word = SHORT.get(self.verdict, self.verdict)
        return word if self.count == self.total else f"{word} {self.count}/{self.total}"


@dataclass
class Matrix:
    """backends: name -> version. rows: family -> invariants. cells: (invariant, backend)."""

    backends: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[Invariant]] = field(default_factory=dict)
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    totals: dict[str, Counter[str]] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)  # largest error as a share of its bound, where all is well


@dataclass
class Root:
    """A red invariant of a backend that rests on no other red one, and what follows from it."""

    backend: str
    invariant: str
    records: list[Record]
    follow: list[Record] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)  # later roots that raise, die or hang in the same way


def records_of(runs: Sequence[Results]) -> list[Record]:
    return [record for run in runs for record in run.records]


def matrix(runs: Sequence[Results]) -> Matrix:
    made = Matrix()
    grouped: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        made.backends |= run.backends
        for invariant in run.invariants:
            row = made.rows.setdefault(invariant.family, [])
            if invariant not in row:
                row.append(invariant)
        for record in run.records:
            grouped.setdefault((record.invariant, record.backend), []).append(record.verdict)
            made.totals.setdefault(record.backend, Counter())[record.verdict] += 1
            if record.fraction is not None and not record.red:
                made.worst[record.backend] = max(record.fraction, made.worst.get(record.backend, 0.0))
    made.cells = {place: cell(verdicts) for place, verdicts in grouped.items()}
    return made


def cell(verdicts: Iterable[str]) -> Cell:
    """UNSUPPORTED trials count only where there is nothing else."""
    counts = Counter(verdicts)
    if len(counts) > 1:
        counts.pop("UNSUPPORTED", None)
    worst = next((verdict for verdict in VERDICTS if counts[verdict]), "")
    return Cell(worst, counts[worst], counts.total())


def unexercised(runs: Sequence[Results]) -> dict[str, list[str]]:
    """Per backend, the features that it declares and no invariant made use of: claims without a verdict."""
    used: dict[str, set[str]] = {}
    for record in records_of(runs):
        used.setdefault(record.backend, set()).update(record.features)
    claims = {name: claimed for run in runs for name, claimed in run.claims.items()}
    idle = {name: [one for one in claimed if one not in used.get(name, ())] for name, claimed in claims.items()}
    return {name: features for name, features in idle.items() if features}


def roots(records: Iterable[Record]) -> list[Root]:
    """In the order of the records, so that the basics come first."""
    red = [record for record in records if record.red]
    found: dict[tuple[str, str], Root] = {}
    for record in red:
        if not record.after:
            key = (record.backend, record.invariant)
            found.setdefault(key, Root(*key, [])).records.append(record)
    at = {(r.backend, r.invariant, *r.place): key for key, root in found.items() for r in root.records}
    for record in red:
        for earlier in record.after:
            root = at.get((record.backend, earlier, *record.place))
            if root is not None:
                found[root].follow.append(record)
                break
    return _gathered(found.values())


def _gathered(found: Iterable[Root]) -> list[Root]:
    """A backend that refuses everything for one reason is told of once."""
    first: dict[tuple[str, ...], Root] = {}
    kept: list[Root] = []
    for root in found:
        causes = {(record.verdict, record.cause) for record in root.records}
        if len(causes) == 1 and root.records[0].verdict in {"ERROR", "CRASH", "TIMEOUT"}:
            earlier = first.setdefault((root.backend, *next(iter(causes))), root)
            if earlier is not root:
                earlier.alike.append(root.invariant)
                earlier.follow += root.follow
                continue
        kept.append(root)
    return kept


def message(record: Record) -> str:
    """What is told of a red record, below its verdict."""
    where = " · ".join(filter(None, (f"{record.backend} {record.version}", record.facet, record.on, record.dtype)))
    if not record.failure:
        return f"{record.invariant}: {record.reason}\n  backend    {where}"
    return f"{record.failure}\n  note       {record.reason}" if record.reason else record.failure


def follows(root: Root) -> list[str]:
    """One line for what has the same cause, and one for what rests on it."""
    lines = []
    if root.alike:
        lines.append(f"{len(root.alike)} more for the same reason: {', '.join(root.alike)}")
    if root.follow:
        names = ", ".join(dict.fromkeys(record.invariant for record in root.follow))
        lines.append(f"{len(root.follow)} more follow from {root.invariant}: {names}")
    return lines


def by_message(records: Iterable[Record]) -> Iterator[tuple[Record, int]]:
    """One record for each verdict and cause, and how many more are like it."""
    alike: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        alike.setdefault((record.verdict, record.cause), []).append(record)
    for same in alike.values():
        yield same[0], len(same) - 1


def gaps(records: Iterable[Record]) -> list[tuple[Record, int]]:
    """One record per gap of a backend, and the number of trials that show it."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.verdict == "GAP":
            found.setdefault((record.backend, record.invariant, record.reason), []).append(record)
    return [(same[0], len(same)) for same in found.values()]


def red_count(counts: Counter[str]) -> int:
    return sum(counts[verdict] for verdict in RED)
