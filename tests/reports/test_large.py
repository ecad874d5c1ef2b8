"""A large report stays small enough to be opened, and says what it leaves to the files."""

from pathlib import Path

import large
import pytest
import shown

import reports
from reports.build import build
from reports.text import STEP_LIMIT

LIMIT = 8_000_000  # bytes of a page


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    large.benchmarks(tmp_path / "runs")
    large.conformance(tmp_path / "results.jsonl")
    report = reports.load(tmp_path)
    assert report.problems.empty
    assert len(report.benchmarks) == large.ROWS
    assert report.benchmarks["shown"].sum() == large.ROWS / large.RUNS
    assert len(report.conformance) == 40 * 60 * 3
    build(report, tmp_path / "out")
    assert (tmp_path / "out" / "index.html").stat().st_size < LIMIT
    assert (tmp_path / "out" / "summary.md").stat().st_size <= STEP_LIMIT
    page = shown.page(tmp_path / "out")
    assert len(page["matrix"]) == 1 + 60
    assert {len(row) for row in page["matrix"]} == {1 + 40}
    assert len(page["summary"]) == 1 + 40
    assert len(shown.rows(tmp_path / "out", "benchmarks")) == large.ROWS / large.RUNS
    assert "more cases are in tables/benchmarks.csv" in (tmp_path / "out" / "index.html").read_text()
