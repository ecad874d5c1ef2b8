"""The writer, and the records of trials that did not end."""

import json
from pathlib import Path

import pytest

from conformance.invariant import Invariant
from conformance.limit import UnderWay, left_behind
from conformance.plan import digest
from conformance.record import Record, Verdict
from conformance.results import Writer, environment, from_line, to_line, unfinished

ABOUT = {
    "backend": "peft",
    "version": "0.19",
    "invariant": "merge-oracle",
    "family": "merge",
    "facet": "model",
    "dtype": "float32",
    "on": "tiny-bert",
    "statement": "A merged weight is W + s B A.",
}
STACK = """Timeout (0:00:03)!
Thread 0x1 (most recent call first):
  File "/lib/threading.py", line 1 in wait
  File "/lib/execnet.py", line 2 in read

Thread 0x2 (most recent call first):
  File "/lib/kernel.py", line 3 in spin
  File "/lib/conformance/subject.py", line 4 in vjp
  File "/lib/conformance/trial.py", line 5 in _judge
  File "/lib/hypothesis/core.py", line 6 in given
"""


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    writer = Writer(path)
    assert path.read_text() == ""
    writer.header(trials=2)
    writer.record(Record("a", "1", "i", "f", "layer", "float32", "", Verdict.PASS, fraction=0.5))
    kinds = [json.loads(line)["type"] for line in path.read_text().splitlines()]
    assert kinds == ["header", "record"]
    writer.record(Record("a", "1", "j", "f", "layer", "float32", "", Verdict.GAP_CLOSED))
    writer.footer(1)
    writer.close()
    footer = json.loads(path.read_text().splitlines()[-1])
    assert footer["counts"] == {"PASS": 1, "GAP-CLOSED": 1}
    assert (footer["records"], footer["exitstatus"]) == (2, 1)


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("dear")
    with pytest.raises(FileExistsError):
        Writer(path)
    assert path.read_text() == "dear"


def test_a_record_survives_the_way_from_the_worker() -> None:
    record = Record("a", "1", "i", "f", "layer", "float32", "", Verdict.FAIL, case={"r": 3}, failure="é\x1b")
    assert from_line(to_line(record)) == record


def test_the_environment_names_versions_and_device() -> None:
    told = environment()
    assert {"python", "torch", "numpy", "hypothesis"} <= set(told["versions"])
    assert told["device"]["kind"] == "cpu"


def test_the_digest_changes_with_any_statement_and_with_no_order() -> None:
    one, two = Invariant("a", "f", "A.\n\n  More."), Invariant("b", "f", "B.")
    assert digest([one, two]) == digest([two, Invariant("a", "g", "A. More.")])
    assert digest([one, two]) != digest([one, Invariant("b", "f", "C.")])


class TestUnfinished:
    def test_timeout(self) -> None:
        now = UnderWay({"r": 3}, "lora-conformance reproduce ...", STACK, timed_out=True)
        record = unfinished(ABOUT, now, 3.2, 3)
        assert record.verdict is Verdict.TIMEOUT
        assert record.failure == (
            "merge-oracle: A merged weight is W + s B A.\n"
            "  backend    peft 0.19 · model on tiny-bert · float32\n"
            "  case       r=3\n"
            "  timeout    no answer within 3 s\n"
            '             File "/lib/kernel.py", line 3 in spin\n'
            '             File "/lib/conformance/subject.py", line 4 in vjp\n'
            "  reproduce  lora-conformance reproduce ..."
        )

    def test_crash_without_a_word(self) -> None:
        record = unfinished(ABOUT, UnderWay(), 0.1, 3)
        assert record.verdict is Verdict.CRASH
        assert record.cause == "the process died"
        assert record.failure.endswith("  crash      the process died\n  reproduce  (no case was being judged)")

    def test_what_a_worker_left(self, tmp_path: Path) -> None:
        assert left_behind(tmp_path, "gw0") == UnderWay()
        (tmp_path / "gw0.case").write_text('{"case": {"r": 1}, "reproduce": "cmd"}')
        (tmp_path / "gw0.stack").write_text(STACK)
        assert left_behind(tmp_path, "gw0") == UnderWay({"r": 1}, "cmd", STACK, timed_out=True)
        (tmp_path / "gw0.case").write_text('{"case": {"r"')
        assert left_behind(tmp_path, "gw0").case == {}
