"""Verdicts of a run of the suite that has been before: taken from its file, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record import FROZEN
from bench.verdicts import CONFORMING, NOT_JUDGED, WRONG, recorded
from conformance import plan
from conformance.discovery import UsageError
from conformance.invariant import REGISTRY
from conformance.record import Record, Verdict
from conformance.results import Writer, environment

BACKENDS = [
    {"reference": "right", "name": "right", "version": "1"},
    {"reference": "m:bad", "name": "bad", "version": ""},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run of one backend that holds its invariant and one that does not, judged here and now."""
    named = [{"id": i.id, "family": i.family, "statement": i.statement, "after": i.after} for i in REGISTRY.values()]
    asked = {"profile": "full", "seed": 0, "models": [], "backends": BACKENDS, "trials": 2}
    writer = Writer(tmp_path / "results.jsonl")
    writer.header(invariants=named, digest=plan.digest(REGISTRY.values()), **asked, **environment())
    for name, verdict in (("right", Verdict.PASS), ("bad", Verdict.FAIL)):
        writer.record(Record(name, "1", named[0]["id"], named[0]["family"], "layer", "float32", "", verdict))
    writer.footer(1)
    writer.close()
    return tmp_path / "results.jsonl"


def rewrite(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the header."""
    header, *rest = path.read_text().splitlines()
    changed = json.loads(header)
    edit(changed)
    path.write_text("\n".join([json.dumps(changed), *rest]) + "\n")


def test_they_are_taken_for_the_backends_that_are_asked_for(path: Path) -> None:
    found = recorded(path, ["right", "m:bad"])
    assert {name: verdict.word for name, verdict in found.items()} == {
        FROZEN: NOT_JUDGED,
        "right": CONFORMING,
        "m:bad": WRONG,
    }
    assert found["m:bad"].reason.startswith("red in ")
    assert found["right"].digest != found["m:bad"].digest


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda header: header.update(suite="0.0.1"), r"suite 0\.0\.1, and .* is installed"),
        (lambda header: header.update(digest="d"), "other invariants than those of this suite"),
        (lambda header: header["versions"].update(torch="1.0"), r"torch 1\.0, and .* is installed"),
        (lambda header: header["versions"].update(peft="1.0", numpy="1.0"), r"numpy 1\.0, .*, peft 1\.0, and"),
    ],
)
def test_those_of_something_else_are_refused(path: Path, edit: Callable[[dict[str, Any]], None], why: str) -> None:
    rewrite(path, edit)
    with pytest.raises(UsageError, match=rf"results\.jsonl is of .*{why}.*: judge again"):
        recorded(path, ["right"])


def test_so_are_half_a_run_and_one_of_other_backends(path: Path) -> None:
    with pytest.raises(UsageError, match=r"says nothing of backend 'peft': it judged right, m:bad"):
        recorded(path, ["right", "peft"])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UsageError, match="truncated"):
        recorded(path, ["right"])
