"""``mutants``: what the suite catches, and with ``--measure`` how surely, how small, and how often wrongly."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conformance.discovery import UsageError
from conformance.invariant import REGISTRY
from conformance.measure import alarms, resolution
from conformance.measure.kills import Job, all_jobs, killed, named_jobs
from conformance.measure.pool import run_all
from conformance.mutants import MUTANTS
from conformance.record import Verdict
from lora_ref.rounding import UNIT_ROUNDOFF

SEEDS, CASES = 20, 100_000


def execute(out: Path, workers: int, *, measure: bool) -> int:
    """Exit status 1 if a mutant survives an invariant named for it, or if a right implementation is found wrong.

    Raises:
        UsageError: the folder is not new or empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"{out} is not empty: name a new or empty folder")
    console = Console()
    survivors = _matrix(console, out, workers)
    if not measure:
        return int(survivors > 0)
    survivors += _kill_rate(console, out, workers)
    wrong = _false_alarms(console, out, workers)
    _resolution(console, out, workers)
    return int(survivors + wrong > 0)


def _matrix(console: Console, out: Path, workers: int) -> int:
    """The kill matrix; survivors are counted."""
    jobs = all_jobs("quick")
    found = dict(zip(jobs, run_all("kill matrix", killed, jobs, workers), strict=True))
    found |= {job: killed(job) for job in _named_misses(found)}
    kills = {(job.mutant, job.invariant) for job, dead in found.items() if dead}
    table = Table("mutant", "killed by", "also found by", "defect", title="Kill matrix")
    rows, survivors = [], 0
    for mutant in MUTANTS.values():
        named = [f"{name}" if (mutant.id, name) in kills else f"SURVIVES {name}" for name in mutant.killed_by]
        survivors += sum(name.startswith("SURVIVES") for name in named)
        others = sorted(i for m, i in kills if m == mutant.id and i not in mutant.killed_by)
        rows.append([mutant.id, ", ".join(named), ", ".join(others), mutant.defect, mutant.thread])
        table.add_row(mutant.id, "\n".join(named), str(len(others)), mutant.defect)
    console.print(table)
    console.print(f"{len(MUTANTS)} mutants, {survivors} survivals of an invariant named for them")
    _write(out, "kills", ["mutant", "killed by", "also found by", "defect", "thread"], rows)
    with (out / "kill-matrix.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["mutant", *REGISTRY])
        for name in MUTANTS:
            cells = {job.invariant: int((name, job.invariant) in kills) for job in found if job.mutant == name}
            writer.writerow([name, *(cells.get(invariant, "") for invariant in REGISTRY)])
    return survivors


def _named_misses(found: dict[Job, bool]) -> list[Job]:
    """Named kills that the few cases of the quick profile missed: to be tried with all cases."""
    missed = {(job.mutant, job.invariant) for job, dead in found.items() if not dead}
    return [job for job in named_jobs("full", 1) if (job.mutant, job.invariant) in missed]


def _kill_rate(console: Console, out: Path, workers: int) -> int:
    jobs = named_jobs("full", SEEDS)
    dead = run_all(f"kill rate, {SEEDS} seeds", killed, jobs, workers)
    lived = Counter((job.mutant, job.invariant) for job, died in zip(jobs, dead, strict=True) if not died)
    console.print(f"kill rate: {sum(dead)} of {len(jobs)} ({SEEDS} seeds each, by the named invariant)")
    rows = [[mutant, invariant, f"{SEEDS - n} of {SEEDS}"] for (mutant, invariant), n in sorted(lived.items())]
    _write(out, "kill-rate-misses", ["mutant", "invariant", "killed"], rows)
    return sum(lived.values())


def _false_alarms(console: Console, out: Path, workers: int) -> int:
    cases, seed, wrong, rows = 0, 0, 0, []
    while cases < CASES:
        rounds = [alarms.Round(name, seed + n) for n in range(workers) for name in alarms.BACKENDS]
        seed += workers
        for records in run_all(f"false alarms, {cases} of {CASES} cases", alarms.judge, rounds, workers):
            cases += sum(record.examples for record in records)
            red = [record for record in records if record.verdict.red and record.verdict is not Verdict.GAP]
            wrong += len(red)
            rows += [[r.backend, r.invariant, r.facet, r.dtype, r.cause, r.reproduce] for r in red]
    console.print(f"false alarms: {wrong} in {cases} cases ({seed} seeds of {' and '.join(alarms.BACKENDS)})")
    _write(out, "false-alarms", ["backend", "invariant", "facet", "dtype", "cause", "reproduce"], rows)
    return wrong


def _resolution(console: Console, out: Path, workers: int) -> None:
    settings = [
        resolution.Setting(dtype, tier, place)
        for dtype in ("float32", "bfloat16", "float16")
        for tier in ("exact", "bounded")
        for place in resolution.PLACES
    ]
    results = run_all("resolution", resolution.measure, settings, workers)
    head = ["dtype", "tier", "planted in", *resolution.WAYS]
    table = Table(*head, title="Smallest relative error found with probability 0.99, in units of roundoff u")
    rows = []
    for result in results:
        u = UNIT_ROUNDOFF[result.setting.dtype]
        cells = [_cell(error, alarm, u) for error, alarm in zip(result.smallest, result.alarms, strict=True)]
        rows.append([*list(asdict(result.setting).values())[:3], *cells])
        table.add_row(*rows[-1])
    console.print(table)
    _write(out, "resolution", head, rows)


def _cell(error: float | None, alarm: float, u: float) -> str:
    if alarm:
        return f"useless: objects to {100 * alarm:.0f} % of right results"
    return "none" if error is None else f"{error / u:g} u ({error:.2g})"


def _write(out: Path, name: str, head: list[str], rows: list[list[str]]) -> None:
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
