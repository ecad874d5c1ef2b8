"""Two sets of results beside each other."""

from pathlib import Path
from typing import Any

import pytest
import recorded
import samples
from samples import record
from typer.testing import CliRunner

import reports
from reports.cli import app
from reports.compare import Comparison, compare


def judged(path: Path, **verdicts: str) -> Path:
    """Verdicts of backend ``a`` by invariant."""
    header = verdicts.pop("header", {})
    return samples.write(path, [record("a", name, verdict) for name, verdict in verdicts.items()], header=header)


def changes(old: Path, new: Path) -> tuple[Comparison, list[list[str]]]:
    found = compare(reports.load(old), reports.load(new))
    return found, [[cell.text for cell in row] for row in (*found.verdicts.rows, *found.figures.rows)]


def test_verdicts_that_changed(tmp_path: Path) -> None:
    old = judged(tmp_path / "a.jsonl", forward="PASS", gradients="FAIL", training="PASS")
    new = judged(tmp_path / "b.jsonl", forward="FAIL", gradients="PASS", training="UNSUPPORTED")
    found, rows = changes(old, new)
    assert rows == [
        ["broke", "a", "forward", "PASS → FAIL", "1"],
        ["mended", "a", "gradients", "FAIL → PASS", "1"],
        ["changed", "a", "training", "PASS → UNSUPPORTED", "1"],
    ]
    assert found.worse
    assert found.same == (0, 0)


def test_only_trials_of_both_sides_are_compared(tmp_path: Path) -> None:
    old = judged(tmp_path / "a.jsonl", forward="PASS", gradients="PASS")
    new = judged(tmp_path / "b.jsonl", forward="PASS", training="FAIL")
    found, rows = changes(old, new)
    assert rows == []
    assert not found.worse
    assert found.notes == ["1 trials are on the old side only, 1 on the new side only"]


def test_different_suites_are_not_compared_in_silence(tmp_path: Path) -> None:
    old = judged(tmp_path / "a.jsonl", forward="PASS")
    other = [{**samples.INVARIANTS[0], "statement": "y is right, mostly."}, *samples.INVARIANTS[1:]]
    header: dict[str, Any] = {"digest": "e", "suite": "0.2.0", "invariants": other, "profile": "full"}
    new = samples.write(tmp_path / "b.jsonl", [record("a", "forward", "PASS")], header=header)
    found, _ = changes(old, new)
    assert found.notes[0].startswith("Judged by different suites, suite 0.1.0 (d) and suite 0.2.0 (e): 1 of the statem")
    assert found.notes[1] == "The old side was judged with the profile quick, the new one with full"


@pytest.mark.parametrize(
    ("metric", "old", "new", "told"),
    [
        ("saved_bytes", 1000.0, 1001.0, "worse"),
        ("saved_bytes", 1001.0, 1000.0, "better"),
        ("trainable_params", 10.0, 11.0, "changed"),
        ("ratio_to_frozen", 1.0, 1.2, "slower"),
        ("ratio_to_frozen", 1.2, 1.0, "faster"),
        ("ratio_to_frozen", 1.0, 1.05, ""),  # the intervals overlap
        ("saved_bytes", 1000.0, None, "broke"),
        ("saved_bytes", None, 1000.0, "mended"),
    ],
)
def test_figures_that_moved(tmp_path: Path, metric: str, old: float | None, new: float | None, told: str) -> None:
    for name, value in (("a", old), ("b", new)):
        status = {} if value is not None else {"status": "oom"}
        row = recorded.figure("peft", metric, value, recorded.case(), **status)
        recorded.write(recorded.table([row]), tmp_path / f"{name}.parquet")
    found, rows = changes(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert [row[0] for row in rows] == ([told] if told else [])
    assert found.same == (0, int(not told))
    assert found.worse == (told in {"worse", "broke"})


def test_a_byte_more_is_seen(tmp_path: Path) -> None:
    for name, value in (("a", 1_000_000.0), ("b", 1_000_064.0)):
        rows = [recorded.figure("peft", "saved_bytes", value)]
        recorded.write(recorded.table(rows), tmp_path / f"{name}.parquet")
    _, ((*_, old, new, _),) = changes(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert (old, new) == ("1,000,000 B", "1,000,064 B")


def test_the_command(tmp_path: Path) -> None:
    old = judged(tmp_path / "a.jsonl", forward="PASS")
    new = judged(tmp_path / "b.jsonl", forward="FAIL")
    run = CliRunner().invoke
    done = run(app, ["compare", str(old), str(new), "--markdown", str(tmp_path / "c.md")])
    assert done.exit_code == 1
    assert "broke  a · forward · PASS → FAIL" in done.output
    text = (tmp_path / "c.md").read_text()
    assert text.startswith("### LoRA: 1 worse\n")
    assert "| broke | a | forward | PASS → FAIL | 1 of 1 |" in text
    assert run(app, ["compare", str(old), str(old)]).exit_code == 0
    nothing = run(app, ["compare", str(old), str(tmp_path / "absent")])
    assert nothing.exit_code == 2
    assert "a side holds no results: nothing to compare" in nothing.output
    unwritable = run(app, ["compare", str(old), str(new), "--markdown", str(tmp_path)])
    assert unwritable.exit_code == 2
    assert unwritable.output.splitlines()[-1].startswith("lora-report: ")


def test_help_shows_exit_status_and_an_example() -> None:
    for command in ("build", "compare"):
        text = CliRunner().invoke(app, [command, "--help"]).output
        assert "Exit status: 0" in text
        assert f"lora-report {command} " in text
