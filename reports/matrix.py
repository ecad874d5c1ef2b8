"""The comparison for a terminal: a matrix, then failures from their roots, then gaps."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.escape import inline, plain
from reports.results import RED, VERDICTS, Record, Results
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
    red_count,
    roots,
    unexercised,
)

_STYLES = {
    "PASS": "green",
    "GAP": "yellow",
    "UNSUPPORTED": "dim",
    **dict.fromkeys(RED, "bold red"),
    "GAP-CLOSED": "bold magenta",
}
_TRACE_LINES = 8
_COLUMN = 10  # holds "FAIL 12/16" on one line
_WORST = "largest error/bound"


def show(runs: Sequence[Results], console: Console) -> None:
    """Text that came from a backend is escaped and never read as markup; commands are not wrapped, to be copied."""
    made, records = matrix(runs), records_of(runs)
    for table in _tables(made, console.width):
        console.print(table, "")
    console.print(_legend(made))
    for text in (*_failures(records), *_gaps(records), *_idle(runs), _last_line(runs, made)):
        console.print(text, soft_wrap=True)


def _tables(made: Matrix, width: int) -> list[Table]:
    """As many backends side by side as the width holds."""
    longest = max((len(i.id) for rows in made.rows.values() for i in rows), default=0)
    first = min(max(longest, len(_WORST)) + 3, width // 2)
    each = max(1, (width - first) // _COLUMN)
    names = list(made.backends)
    return [_table(made, names[n : n + each], first) for n in range(0, len(names), each)]


def _table(made: Matrix, names: Sequence[str], first: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("invariant", overflow="fold", width=first - 1)
    for name in names:
        heading = Text(f"{inline(name)}\n{inline(made.backends[name])}")
        table.add_column(heading, overflow="fold", width=_COLUMN - 1)
    for family, invariants in made.rows.items():
        shown = [i for i in invariants if any((i.id, name) in made.cells for name in names)]
        if shown:
            table.add_row(Text(inline(family), style="bold"))
        for invariant in shown:
            cells = [_cell(made, invariant.id, name) for name in names]
            table.add_row(Text(f"  {inline(invariant.id)}"), *cells)
    table.add_section()
    for verdict in ("PASS", *(v for v in VERDICTS if v != "PASS")):
        if any(counts[verdict] for counts in made.totals.values()):
            counts = [str(made.totals[name][verdict]) if name in made.totals else NOTHING for name in names]
            table.add_row(Text(f"  {SHORT.get(verdict, verdict)}", style=_STYLES[verdict]), *counts)
    if made.worst:
        worst = [f"{made.worst[name]:.2f}" if name in made.worst else NOTHING for name in names]
        table.add_row(Text(f"  {_WORST}"), *worst)
    return table


def _cell(made: Matrix, invariant: str, backend: str) -> Text:
    cell = made.cells.get((invariant, backend))
    return Text(NOTHING, style="dim") if cell is None else Text(cell.text, style=_STYLES[cell.verdict])


def _legend(made: Matrix) -> Text:
    used = {SHORT.get(v, v) for counts in made.totals.values() for v in counts}
    absent = any((i.id, name) not in made.cells for rows in made.rows.values() for i in rows for name in made.backends)
    words = [f"{word} = {what}" for word, what in LEGEND.items() if word in used or (word == NOTHING and absent)]
    return Text(" · ".join(words) + " · n/m = in n of m trials (facet x dtype x model)\n", style="dim")


def _failures(records: Sequence[Record]) -> list[Text]:
    found = roots(records)
    if not found:
        return []
    parts = [_title("Failures")]
    for root in found:
        for record, more in by_message(root.records):
            parts.append(failure(record))
            if more:
                parts.append(
                    Text(f"  and {more} more with the same cause on other facets, dtypes or models", style="dim")
                )
        parts += [Text(f"  {inline(line)}", style="dim") for line in follows(root)]
        parts.append(Text())
    return parts


def failure(record: Record) -> Text:
    """The whole message; where the backend raised, also the end of its traceback."""
    head = Text.assemble((f"{record.verdict} ", _STYLES[record.verdict]), plain(message(record)))
    if record.verdict == "ERROR":
        lines = [line for line in plain(record.traceback).split("\n") if line.strip(" ^~")]
        head.append("".join(f"\n    {line}" for line in lines[-_TRACE_LINES:]), style="dim")
    return head


def _gaps(records: Sequence[Record]) -> list[Text]:
    found = gaps(records)
    if not found:
        return []
    parts = [_title("Known gaps")]
    for record, trials in found:
        head = f"{record.backend} · {record.invariant} ({trials} trial{'s' * (trials != 1)}): {record.reason}"
        parts.append(Text(inline(head)))
        if record.upstream:
            parts.append(Text(f"  {inline(record.upstream)}", style="dim"))
    return [*parts, Text()]


def _idle(runs: Sequence[Results]) -> list[Text]:
    found = unexercised(runs)
    if not found:
        return []
    lines = [Text(inline(f"{name} · {', '.join(features)}")) for name, features in found.items()]
    return [_title("Declared, and exercised by no invariant in this run"), *lines, Text()]


def _last_line(runs: Sequence[Results], made: Matrix) -> Text:
    total = sum(counts.total() for counts in made.totals.values())
    red = sum(map(red_count, made.totals.values()))
    passed = sum(counts["PASS"] for counts in made.totals.values())
    seconds = sum(run.seconds for run in runs)
    first = runs[0]
    words = (
        f"{red} red, {passed} passed of {total} trials · profile {first.profile}, seed {first.seed} · {seconds:.1f} s"
    )
    return Text(words, style="bold red" if red else "bold green")


def _title(text: str) -> Text:
    return Text(f"{text}\n", style="bold underline")
