"""What is no whole run of this schema is refused in one line that names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import samples
from samples import record

from reports.results import ResultsError, read

GOOD = [record("a", "forward", "PASS"), record("a", "gradients", "FAIL")]


def test_a_whole_file(tmp_path: Path) -> None:
    results = read(samples.write(tmp_path / "r.jsonl", GOOD))
    assert [(r.invariant, r.verdict, r.red) for r in results.records] == [
        ("forward", "PASS", False),
        ("gradients", "FAIL", True),
    ]
    assert results.backends == {"a": "1.0"}
    assert results.seconds == 1.5


def test_records_come_in_the_order_of_the_invariants(tmp_path: Path) -> None:
    results = read(samples.write(tmp_path / "r.jsonl", GOOD[::-1]))
    assert [r.invariant for r in results.records] == ["forward", "gradients"]


def test_what_rests_on_what_within_one_place(tmp_path: Path) -> None:
    elsewhere = record("a", "training", "FAIL", dtype="bfloat16")
    red = [record("a", name, "FAIL") for name in ("forward", "training")]
    results = read(samples.write(tmp_path / "r.jsonl", [*red, record("a", "gradients", "PASS"), elsewhere]))
    after = {(r.invariant, r.dtype): r.after for r in results.records}
    assert after["training", "float32"] == ("forward",)
    assert after["training", "bfloat16"] == ()
    assert after["gradients", "float32"] == ()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda _: "", "is empty: the run was cut off before its first trial"),
        (lambda _: "hello", "is no results file of lora-conformance: not one whole line"),
        (lambda _: "hello\n", "line 1 is not JSON"),
        (lambda _: "[1]\n", "line 1 is no JSON object"),
        (lambda _: '{"a": 1}\n', "is no results file of lora-conformance: its first line is no header"),
        (lambda t: t.replace('"schema": 1', '"schema": 2'), "has schema 2, this version reads 1: update lora-"),
        (lambda t: t[: t.index('{"type": "footer"')], "is truncated: 2 of 2 records and no footer"),
        (lambda t: t[: t.index('"FAIL"')], "is truncated: 1 of 2 records and no footer; the run was cut off"),
        (lambda t: t.replace('"trials": 2', '"trials": 3'), "is truncated: 2 records, 2 by its footer, 3 planned"),
        (lambda t: t.replace('"records": 2', '"records": 1'), "is truncated: 2 records, 1 by its footer, 2 planned"),
        (lambda t: t + t, "goes on after its footer: it holds more than one run"),
        (lambda t: t + "{", "goes on after its footer: it holds more than one run"),
        (lambda t: t.replace('"FAIL"', '"FINE"'), "ValueError: neither a record nor a verdict: record FINE"),
        (lambda t: t.replace('"dtype": "float32", ', "", 1), "has a malformed line: TypeError: "),
        (lambda t: t.replace('"invariant": "forward"', '"invariant": "odd"'), "ValueError: no such invariant: odd"),
        (lambda t: t.replace('"verdict"', '"fraction": "much", "verdict"', 1), "TypeError: fraction is 'much'"),
        (lambda t: t.replace('"device": {"kind"', '"device": 3, "kind": {"kind"'), "has a malformed line: TypeError"),
        (lambda t: t.replace('"profile": "quick", ', ""), "has a malformed line: KeyError: 'profile'"),
    ],
)  # fmt: skip
def test_errors(tmp_path: Path, spoil: Callable[[str], str], what: str) -> None:
    path = samples.write(tmp_path / "r.jsonl", GOOD)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ResultsError) as caught:
        read(path)
    assert what in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_absent_and_binary(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be read: No such file or directory"):
        read(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="cannot be read: it is not UTF-8"):
        read(tmp_path / "binary")
