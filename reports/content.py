"""What a report says, in order: page and Markdown are written from it, and so show the same figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from reports import cost
from reports.escape import inline
from reports.figures import costs as cost_figures
from reports.figures import history as history_figures
from reports.figures import simulated as simulated_figures
from reports.figures.theme import Chart
from reports.report import Report
from reports.sheet import Sheet
from reports.tables import about, costs, history, kills, simulated, summary


@dataclass(frozen=True)
class Block:
    """A table and the figures that are drawn from it."""

    sheet: Sheet
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """reading: how its figures and tables are to be read. absent: what to do where there is nothing to show."""

    id: str
    title: str
    reading: str
    blocks: list[Block]
    absent: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Content:
    """sentences: the answers in short. sections: by id, in order. Conformance itself is in ``report.suites``."""

    report: Report
    sentences: list[str]
    summary: Sheet
    sections: list[Section]

    @property
    def charts(self) -> list[Chart]:
        """All figures."""
        return [chart for section in self.sections for block in section.blocks for chart in block.charts]


def content(report: Report) -> Content:
    """Everything that is shown of a report."""
    rows = cost.newest(report)
    means, doubts = cost.overall(rows), cost.doubts(report)
    sections = [_overall(means), _cases(rows, doubts), _simulated(report), _crossover(report)]
    sections += [_history(report), _kills(report), _about(report)]
    return Content(report, summary.sentences(report, means, doubts), summary.sheet(report, means), sections)


def _overall(means: pd.DataFrame) -> Section:
    blocks = [Block(costs.overall(means), cost_figures.overall(means))] if len(means) else []
    reading = (
        "A mark is the geometric mean over the cases, its line the range from the lowest case to the highest; the"
        " dashed line is the bare frozen layer, which costs 1 by definition. Left is better. Forward, backward and the"
        " whole step are apart. Means over different sets of cases do not compare: the table says how many each holds."
    )
    return Section("cost", "What it costs, over all cases", reading, blocks, _RUN)


def _cases(rows: pd.DataFrame, doubts: dict[str, str]) -> Section:
    shown, left_out = cost.panels(rows)
    blocks = []
    for panel in shown:
        charts = cost_figures.of_panel(panel, doubts, costs.points(panel, doubts))
        notes = [inline(f"{b}, {m}: {s}{', ' * bool(e)}{e}") for m, b, s, e in costs.problems(panel)]
        blocks.append(Block(costs.case(panel, doubts), charts, notes))
    reading = (
        "A mark is the median, its line the 95 % interval of the median, which takes the drift between rounds into"
        " account; where two lines overlap, the order of the two is not shown. Ratios compare within one run, round by"
        " round, so that what the machine did cancels. Memory has no noise to speak of and no line. In the last figure"
        " left and up is better: the blue line joins those that no conforming backend beats in both, by the medians; a"
        " cross marks a backend that does not conform. A backend that is wrong is not timed at all."
    )
    notes = [f"{left_out} more cases are in tables/benchmarks.csv and .parquet."] if left_out else []
    return Section("cases", "Case by case", reading, blocks, _RUN, notes)


def _simulated(report: Report) -> Section:
    blocks = [Block(simulated.sheet(one), [simulated_figures.memory(one)]) for one in simulated.settings(report)]
    reading = (
        "What tensors hold at the moment when they hold most, by what they are for; the dashed line is the memory of"
        " the GPU. Simulated without a GPU and without weights: the driver's context, fragmentation and workspaces"
        " inside kernels come on top. Times are bounds by the roofline, not forecasts."
    )
    return Section("simulated", "Simulated memory", reading, blocks, _hint("simulate --model NAME --out FILE.json"))


def _crossover(report: Report) -> Section:
    blocks = [Block(simulated.crossover(one), [simulated_figures.crossover(one)]) for one in simulated.maps(report)]
    reading = (
        "Time of one step with LoRA over that of full fine-tuning on one hidden x hidden layer, by the roofline: below"
        " 1 (blue) LoRA is faster, above 1 (orange) full fine-tuning is. LoRA needs fewer operations per token, but its"
        " narrow products are bound by memory."
    )
    title = "Where LoRA beats full fine-tuning"
    return Section("crossover", title, reading, blocks, _hint("crossover --out FILE.json"))


def _history(report: Report) -> Section:
    drawn = history.drawn(report)
    blocks = [Block(history.points(one), [history_figures.course(one)]) for one in drawn]
    blocks = [Block(history.sheet(report)), *blocks] if drawn else []
    reading = (
        "A dot is a run, a line the level since the last detected step, a dashed rule a step. Times are those that the"
        " run would have measured at the typical speed of the bare layer. Worse: the newest level is worse, beyond the"
        " gate, than the one ten runs ago; apart: the newest run alone is out."
    )
    return Section("history", "History", reading, blocks, _hint("history DIR --out FILE.json"))


def _kills(report: Report) -> Section:
    blocks = []
    if len(report.kills):
        blocks.append(Block(kills.by_invariant(report)))
    if len(report.mutants):
        blocks.append(Block(kills.mutants(report)))
    reading = (
        "Mutants are broken backends, one defect each and modelled on real bugs. Each must be found by the invariants"
        " that are named for it; one that survives shows what the suite does not catch."
    )
    hint = "Not among the inputs: `lora-conformance mutants --out DIR` writes it."
    return Section("kills", "What the suite catches", reading, blocks, hint)


def _about(report: Report) -> Section:
    tables = (about.conformance_runs, about.benchmark_runs, about.problems)
    blocks = [Block(sheet) for sheet in (table(report) for table in tables) if sheet.rows]
    reading = "Times of different machines, or of a busy one (see load), do not compare."
    return Section("about", "Runs, machines and versions", reading, blocks)


def _hint(command: str) -> str:
    return f"Not among the inputs: `lora-bench {command}` writes it."


_RUN = _hint("run --backend NAME --out DIR")
