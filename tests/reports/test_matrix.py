"""The comparison, as a reader sees it."""

import io
from pathlib import Path
from typing import Any

import samples
from rich.console import Console
from samples import record

from reports import markdown, matrix
from reports.results import read
from reports.summary import cell, roots

EVIL = "x[red]|`<b>*\x1b[31m\u202e\n# title"


def shown(path: Path, records: list[dict[str, Any]], *, width: int = 80, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    matrix.show([read(samples.write(path, records))], console)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def failing(backend: str, invariant: str, verdict: str = "FAIL", **more: Any) -> dict[str, Any]:
    return record(backend, invariant, verdict, failure=f"{invariant}: told in full", **more)


def test_cells_name_the_worst_and_how_often() -> None:
    assert cell(["PASS"] * 3).text == "PASS"
    assert cell(["PASS"] * 4 + ["FAIL"] * 2).text == "FAIL 2/6"
    assert cell(["PASS", "FAIL", "CRASH"]).text == "CRASH 1/3"
    assert cell(["GAP", "PASS"]).text == "GAP 1/2"
    assert cell(["GAP-CLOSED"]).text == "CLOSED"
    assert cell(["PASS", "UNSUPPORTED"]).text == "PASS"
    assert cell(["UNSUPPORTED"] * 2).text == "unsup."


def test_five_backends_fit_into_80_columns_and_more_go_below(tmp_path: Path) -> None:
    records = [
        record(name, "forward", "PASS") for name in ("peft", "loralib", "unsloth", "torchtune", "axolotl", "mine")
    ]
    text = shown(tmp_path / "r", records)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    head = next(line for line in lines if "peft" in line)
    assert head.split() == ["peft", "loralib", "unsloth", "torchtune", "axolotl"]
    assert any(line.split() == ["mine"] for line in lines)
    assert sum(line.startswith("  forward ") for line in lines) == 2


def test_roots_come_in_full_and_what_follows_in_one_line(tmp_path: Path) -> None:
    records = [failing("a", name) for name in ("training", "gradients", "forward")]
    text = shown(tmp_path / "r", records)
    assert "FAIL forward: told in full" in text
    assert "gradients: told in full" not in text
    assert "  2 more follow from forward: gradients, training" in text
    assert text.rstrip().endswith("3 red, 0 passed of 3 trials · profile quick, seed 0 · 1.5 s")


def test_one_message_for_the_same_cause_elsewhere(tmp_path: Path) -> None:
    records = [failing("a", "forward", dtype=dtype, cause="delta doubled") for dtype in ("float32", "float16")]
    records.append(failing("a", "forward", dtype="bfloat16", cause="delta missing"))
    text = shown(tmp_path / "r", records)
    assert text.count("FAIL forward: told in full") == 2
    assert "and 1 more with the same cause" in text


def test_what_refuses_everything_is_told_once(tmp_path: Path) -> None:
    here, there = ({"dtype": d, "cause": "no torch"} for d in ("float32", "float16"))
    records = [failing("a", "forward", "ERROR", **here), failing("a", "gradients", "ERROR", **there)]
    found = roots(read(samples.write(tmp_path / "r", records)).records)
    assert [(root.invariant, root.alike) for root in found] == [("forward", ["gradients"])]
    assert "1 more for the same reason: gradients" in shown(tmp_path / "r", records)


def test_errors_show_the_end_of_the_traceback(tmp_path: Path) -> None:
    trace = "\n".join([f"line {n}" for n in range(30)] + ["    ^^^^", "KeyError: 'q'"])
    text = shown(tmp_path / "r", [failing("a", "forward", "ERROR", traceback=trace)])
    assert "    line 29\n    KeyError: 'q'\n" in text
    assert "line 9\n" not in text


def test_gaps_and_closed_gaps(tmp_path: Path) -> None:
    records = [
        record("a", "forward", "GAP", reason="no rank 3", upstream="https://example.org/1"),
        record("a", "gradients", "GAP-CLOSED", reason="declared as broken, yet it holds: no rank 4"),
    ]
    text = shown(tmp_path / "r", records)
    assert "a · forward (1 trial): no rank 3\n  https://example.org/1" in text
    assert (
        "GAP-CLOSED gradients: declared as broken, yet it holds: no rank 4\n  backend    a 1.0 · layer · float32"
        in text
    )


def test_import_errors_have_a_row(tmp_path: Path) -> None:
    text = shown(tmp_path / "r", [failing("a", "import", "ERROR", facet="", dtype="")])
    assert any(line.split() == ["import", "ERROR"] for line in text.splitlines())


def test_commands_are_not_wrapped(tmp_path: Path) -> None:
    command = "lora-conformance reproduce " + "x" * 200
    bad = record("a", "forward", "FAIL", failure=f"forward: y\n  reproduce  {command}")
    assert command in shown(tmp_path / "r", [bad])


def test_colour_goes_with_words(tmp_path: Path) -> None:
    text = shown(tmp_path / "r", [record("a", "forward", "PASS"), failing("a", "gradients")], colour=True)
    assert "\x1b[32mPASS" in text
    assert "\x1b[1;31mFAIL" in text


def test_a_backend_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    bad = record("a", "forward", "ERROR", failure=EVIL, traceback=EVIL, cause=EVIL)
    gap = record("a", "gradients", "GAP", reason=EVIL, upstream=EVIL)
    text = shown(tmp_path / "r", [{**bad, "backend": EVIL, "version": EVIL}, gap])
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "x[red]|`<b>*\\x1b[31m\\u202e" in text


def test_markdown_cannot_be_broken_out_of(tmp_path: Path) -> None:
    bad = record("a", "forward", "ERROR", failure=f"```\n{EVIL}", traceback=EVIL)
    gap = record("a", "gradients", "GAP", reason=EVIL, upstream=f"https://example.org/1 javascript:{EVIL}")
    text = markdown.render([read(samples.write(tmp_path / "r", [{**bad, "backend": EVIL}, gap]))])
    outside = "".join(part for n, part in enumerate(text.split("````")) if n % 2 == 0)
    assert "<b>" not in "".join(outside.split("```")[::2])
    assert "\x1b" not in text
    assert "\n# title" not in outside.split("```")[0]
    row = next(line for line in text.splitlines() if line.startswith("| forward"))
    assert row == "| forward | ERROR | - |"
    head = next(line for line in text.splitlines() if line.startswith("| invariant"))
    assert head.replace("\\|", "").count("|") == 4
    assert "<https://example.org/1>" in text


def test_markdown(tmp_path: Path) -> None:
    records = [record("a", "forward", "PASS"), failing("a", "gradients"), failing("a", "training")]
    text = markdown.render([read(samples.write(tmp_path / "r", records))])
    assert "| invariant | a 1.0 |\n| --- | --- |\n| **basics** |  |\n| forward | PASS |\n| gradients | FAIL |" in text
    assert (
        "### a: gradients\n\n```text\nFAIL gradients: told in full\n```\n\n1 more follow from gradients: training"
        in text
    )
