"""``lora-report``: recorded results as a page, as tables, and beside each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Results = Annotated[list[Path], typer.Argument(help="Files or folders: results of any kind, whichever they are.")]
Side = Annotated[Path, typer.Argument(help="A file or folder of results.")]


@app.callback()
def main() -> None:
    """What conforms, what it costs, what changed: recorded results of lora-conformance and lora-bench, to be read.

    \b
    lora-report build results runs --out report
    lora-report compare results/main results/branch --markdown comment.md
    """  # noqa: D301 - typer wraps no paragraph that begins so


@app.command()
def build(
    results: Results,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New or empty folder, or an older report.")],
    *,
    step_summary: Annotated[
        bool, typer.Option("--step-summary", help="Append the summary to the file that $GITHUB_STEP_SUMMARY names.")
    ] = False,
) -> None:
    """Write one page that needs nothing else, Markdown, tables, figures and badges.

    \b
    Reads *.jsonl (lora-conformance run), *.parquet (lora-bench run), *.json (what lora-bench
    simulate, crossover and history write with --out) and kill-matrix.csv and kills.csv
    (lora-conformance mutants).
    Writes DIR/index.html, report.md, summary.md, tables/ (CSV, Parquet, columns.csv),
    figures/ (SVG, PNG) and badges/ (JSON for shields' endpoint badge).
    Exit status: 0 all was read, 1 written, but something could not be read (one line each),
    2 nothing could be read, or bad usage; nothing is written then.

    \b
    lora-report build results/main runs simulate.json --out report
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from reports.commands import build_report

    raise typer.Exit(_told(lambda: build_report(results, out, step_summary=step_summary)))


@app.command()
def compare(
    old: Side,
    new: Side,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as Markdown too, for a pull request.")
    ] = None,
) -> None:
    """What changed from one set of results to another: verdicts, and figures.

    \b
    Deterministic figures must be equal; a time is shown as slower or faster if the intervals do
    not overlap, and is judged by lora-bench compare, not here.
    Exit status: 0 nothing is worse, 1 something became red, lost its value or is worse in a
    figure without noise, 2 bad usage.

    \b
    lora-report compare results/main results/branch --markdown comment.md
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from reports.commands import compare_reports

    raise typer.Exit(_told(lambda: compare_reports(old, new, markdown)))


def _told(command: Callable[[], int]) -> int:
    """The exit status; bad usage is one line and status 2, never a traceback."""
    from reports.escape import inline

    try:
        from reports.build import FolderError
    except ModuleNotFoundError as error:
        typer.echo(f"lora-report: {error.name} is not installed: pip install 'lora-conformance[reports]'", err=True)
        return 2
    try:
        return command()
    except FolderError as error:
        typer.echo(f"lora-report: {inline(error)}", err=True)
        return 2
