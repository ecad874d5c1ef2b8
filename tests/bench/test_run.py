"""What a run says of backends that are wrong, die, hang or want too much memory; a run that is taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import store
from bench.canonical import layer
from bench.cases import Case, Mode
from bench.engines.local import Effort, groups, running
from bench.figures import Row
from bench.record import FROZEN
from bench.regression import Verdict, compare
from bench.unfinished import take_up
from bench.verdicts import CONFORMING, WRONG
from bench.verdicts import Verdict as Conformance

CASE = Case("tiny", "q", 48, 32, 4, 1, 64, Mode.STEP)
HERE = str(Path(__file__).parent)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    monkeypatch.setenv("PYTHONPATH", HERE)
    monkeypatch.syspath_prepend(HERE)

    def measured(name: str, word: str = CONFORMING, timeout: float = 100.0) -> list[Row]:
        verdict = Conformance(word, "0", "", "red in x")
        judged = {FROZEN: Conformance("not judged"), f"planted_backends:{name}_backend": verdict}
        effort = Effort(rounds=2, samples=3, seconds=0.1, timeout=timeout)
        options = {"device": "cpu", "threads": 1, "effort": effort, "log": tmp_path / "log.txt"}
        with running([CASE], judged, **options) as engine:
            rows = engine.measure(groups([CASE])[0], {})
        store.table(rows)  # all fit the schema
        return rows

    return measured


def _of(rows: list[Row], name: str) -> dict[str, Row]:
    return {row["metric"]: row for row in rows if name in row["backend"]}


def test_right_backend_is_timed_beside_its_floor(measure) -> None:  # noqa: ANN001
    rows = measure("right")
    mine, floor = _of(rows, "right"), _of(rows, FROZEN)
    assert mine["time_ms"]["status"] == floor["time_ms"]["status"] == "ok"
    assert len(mine["time_ms"]["samples"]) == sum(mine["time_ms"]["rounds"]) == 6
    assert mine["ratio_to_frozen"]["value"] > 0
    m, k, n, r = CASE.tokens, CASE.in_features, CASE.out_features, CASE.rank
    assert mine["flops"]["value"] == 4 * m * k * n + 6 * m * k * r + 6 * m * r * n
    assert floor["flops"]["value"] == 4 * m * k * n


def test_planted_copy_of_x_is_a_regression_to_the_byte(measure) -> None:  # noqa: ANN001
    old, new = measure("right"), measure("copies_x")
    new = [{**row, "backend": row["backend"].replace("copies_x", "right")} for row in new]
    found = compare(store.table(old), store.table(new))
    assert found.regressed
    worse = {c.metric: c for c in found.changes if c.verdict is Verdict.WORSE}
    assert {"saved_bytes", "peak_alloc_delta", "sim_peak_bytes"} <= set(worse)
    copied = CASE.tokens * CASE.in_features * 4
    mine = {name: _of(rows, "right")["saved_bytes"]["value"] for name, rows in (("old", old), ("new", new))}
    assert mine["new"] - mine["old"] == copied


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("wrong_when_large", "wrong", "exact integers"),
        ("out_of_memory", "oom", "allocate"),
        ("without_memory", "oom", "no room"),
        ("killed", "crash", "SIGKILL"),
        ("exiting", "crash", "status 3"),
        ("raising", "crash", "no such thing"),
    ],
)
def test_what_fails_has_a_status_and_no_number(measure, name: str, status: str, says: str) -> None:  # noqa: ANN001
    rows = measure(name)
    mine = _of(rows, name)
    assert list(mine) == ["time_ms"]
    assert mine["time_ms"]["status"] == status
    assert mine["time_ms"].get("value") is None
    assert says in mine["time_ms"]["error"]
    assert _of(rows, FROZEN)["time_ms"]["status"] == "ok"


def test_what_hangs_times_out(measure) -> None:  # noqa: ANN001
    mine = _of(measure("hanging", timeout=25.0), "hanging")
    assert mine["time_ms"]["status"] == "timeout"


def test_what_conformance_found_wrong_is_never_started(measure) -> None:  # noqa: ANN001
    mine = _of(measure("killed", word=WRONG), "killed")
    assert (mine["time_ms"]["status"], mine["time_ms"]["error"]) == ("wrong", "red in x")


def test_run_cut_off_is_taken_up_without_losing_or_doubling(tmp_path: Path) -> None:
    parts = groups([layer("bert-base", module, 8, 16, Mode.STEP) for module in ("q", "up", "down")])
    rows = [[{**g.cases[0].as_row(), "backend": "x", "metric": "flops", "status": "ok", "value": 1.0}] for g in parts]
    request = {"backends": ["x"]}
    with take_up(tmp_path, request) as first:
        (first.folder / "log.txt").touch()
        first.keep(parts[0], rows[0])
        with take_up(tmp_path, request) as beside:
            assert beside.run_id != first.run_id, "a run that is under way is left alone"
    with take_up(tmp_path, {"backends": ["y"]}) as other:
        assert other.run_id != first.run_id
    found = None
    for _ in range(3):  # the second run that was begun above may come first
        with take_up(tmp_path, request) as again:
            if again.run_id == first.run_id:
                found = again
                assert [again.done(part) for part in parts] == [True, False, False]
                for part, row in zip(parts[1:], rows[1:], strict=True):
                    again.keep(part, row)
                path = again.finish(parts, tmp_path)
                break
            (again.folder / "request.json").unlink()
    assert found is not None
    assert store.read(path)["case_id"].to_pylist() == [part.cases[0].case_id for part in parts]
