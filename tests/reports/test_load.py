"""Results of any kind become tidy tables; what cannot be read is one line and stops nothing."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recorded
import samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import record

import reports
from bench import environment
from bench import record as bench_record
from conformance.record import SCHEMA as CONFORMANCE_SCHEMA
from conformance.record import Record, Verdict
from reports.columns import DTYPES, TABLES
from reports.content import content
from reports.inputs import benchmarks as inputs
from reports.results import RED, SCHEMA, VERDICTS
from reports.tables.history import courses
from reports.text import full


def test_every_kind_of_input(tmp_path: Path) -> None:
    report = reports.load(recorded.everything(tmp_path / "all"))
    assert report.problems.empty
    assert report.read == 8
    sizes = {name: len(table) for name, table in report.tables.items()}
    assert sizes["conformance"] == 7
    assert sizes["benchmarks"] == 2 * 3 * (4 + 5 + 6 + 1)
    assert (sizes["benchmark_runs"], sizes["kills"], sizes["mutants"]) == (2, 3, 2)
    assert (sizes["simulated"], sizes["simulated_memory"], sizes["crossover"], sizes["history"]) == (3, 6, 4, 12)
    assert dict(zip(report.backends["backend"], report.backends["standing"], strict=True)) == {
        "peft": "conforms but for gaps",
        "mine": "conforms",
        "wrong": "does not conform",
    }


@pytest.mark.parametrize("filled", [False, True])
def test_tables_have_the_documented_columns_and_types(tmp_path: Path, *, filled: bool) -> None:
    report = reports.load(*([recorded.everything(tmp_path / "all")] if filled else []))
    for name, columns in TABLES.items():
        table = getattr(report, name)
        assert list(table) == list(columns)
        for column, about in columns.items():
            assert isinstance(table[column].dtype, type(pd.api.types.pandas_dtype(DTYPES[about.type])))
            assert about.meaning


def test_missing_is_missing_never_zero(tmp_path: Path) -> None:
    report = reports.load(recorded.everything(tmp_path / "all"))
    wrong = report.benchmarks[report.benchmarks["backend"] == "wrong"]
    assert wrong["value"].isna().all()
    assert set(wrong["status"]) == {"wrong"}
    assert report.history["value"].isna().sum() == 1
    assert report.conformance["fraction"].notna().sum() == 1


def test_of_each_series_the_newest_run_is_shown(tmp_path: Path) -> None:
    recorded.benchmarks(tmp_path / "old.parquet", 0)
    recorded.benchmarks(tmp_path / "new.parquet", 1)
    table = reports.load(tmp_path).benchmarks
    assert set(table.loc[table["shown"], "run_id"]) == {"run1"}
    assert table["shown"].sum() == len(table) / 2


def test_a_row_in_two_files_is_taken_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorded.benchmarks(tmp_path / f"{name}.parquet")
    report = reports.load(tmp_path)
    assert len(report.benchmarks) == 48
    assert report.notes == ("48 benchmark rows are in more than one file, and were taken once",)


def test_a_busy_machine_is_told_of(tmp_path: Path) -> None:
    recorded.benchmarks(tmp_path / "old.parquet", 0, load=9.0)
    recorded.benchmarks(tmp_path / "new.parquet", 1, load=0.4)
    assert reports.load(tmp_path).notes == ()  # the busy one is not shown
    recorded.benchmarks(tmp_path / "newest.parquet", 2, load=4.25)
    assert reports.load(tmp_path).notes == (
        "Benchmark run run2 began on a busy machine (load 4.2, 2 threads): its times, and ratios of them, say little",
    )


def test_a_step_of_a_history(tmp_path: Path) -> None:
    table = reports.load(recorded.history(tmp_path / "h.json")).history
    assert table.loc[table["step"], "run_id"].tolist() == ["run6"]
    assert table["level"].tolist() == [1.0] * 6 + [1.5] * 6


def test_of_a_series_in_several_histories_the_longest_is_shown(tmp_path: Path) -> None:
    for runs in (12, 8, 10):
        recorded.history(tmp_path / f"{runs}.json", runs)
    shown = courses(reports.load(tmp_path))
    assert shown["file"].tolist() == [str(tmp_path / "12.json")]


def test_the_kill_matrix_knows_who_is_named(tmp_path: Path) -> None:
    table = reports.load(*recorded.kills(tmp_path / "m")).kills
    rows = table[["mutant", "invariant", "killed", "named"]].to_numpy().tolist()
    assert rows == [
        ["doubled", "forward", True, True],
        ["doubled", "gradients", False, False],
        ["sleepy", "forward", False, True],
    ]
    alone = reports.load(tmp_path / "m" / "kill-matrix.csv").kills
    assert alone["named"].isna().all()


SPOILT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty results": ("a.jsonl", lambda p: p.write_text(""), "is empty"),
    "truncated results": (
        "b.jsonl",
        lambda p: samples.write(p, [record("a", "forward", "PASS")], whole=False),
        "is trun",
    ),
    "later results": ("c.jsonl", lambda p: recorded.conformance(p, schema=2), "has schema 2, this version reads 1"),
    "undated results": ("d.jsonl", lambda p: recorded.conformance(p, started="once"), "is malformed: "),
    "seedless results": ("e.jsonl", lambda p: recorded.conformance(p, seed="s"), "is malformed: "),
    "empty Parquet": ("f.parquet", lambda p: p.write_bytes(b""), "is empty"),
    "truncated Parquet": ("g.parquet", lambda p: _cut(recorded.benchmarks(p)), "it is no whole Parquet file"),
    "foreign Parquet": ("h.parquet", lambda p: pq.write_table(pa.table({"a": [1]}), p), "but no run of lora-bench"),
    "later Parquet": ("i.parquet", lambda p: _marked(p, b"2"), "has schema 2, this version reads 1"),
    "odd Parquet": ("j.parquet", lambda p: _marked(p, b"1"), "has no column run_id of the type"),
    "foreign JSON": ("k.json", lambda p: p.write_text('{"a": 1}'), "is no results file"),
    "truncated JSON": ("l.json", lambda p: p.write_text('{"kind": "simulate"'), "is not JSON, or is cut off"),
    "deep JSON": ("m.json", lambda p: p.write_text("[" * 100_000), "is not JSON, or is cut off"),
    "later JSON": ("n.json", lambda p: p.write_text('{"kind": "crossover", "schema": 2}'), "has schema 2"),
    "malformed JSON": ("o.json", lambda p: p.write_text('{"kind": "history", "schema": 1}'), "is malformed: KeyError"),
    "mistyped JSON": ("p.json", lambda p: _edited(recorded.simulate(p), "peak", "much"), "'much' is no number"),
    "foreign CSV": ("kills.csv", lambda p: p.write_text("a,b\n1,2\n"), "is no kill matrix"),
    "truncated CSV": ("kill-matrix.csv", lambda p: p.write_text("mutant,a,b\nm,1\n"), "line 2 has 2 cells"),
    "odd CSV": ("kill-matrix.csv", lambda p: p.write_text("mutant,a\nm,7\n"), "has '7' in its matrix"),
    "another table": ("x.csv", lambda p: p.write_text("mutant,invariant,killed\n"), "that the report does not show"),
    "another file": ("x.txt", lambda p: p.write_text("hello"), "is no results file: .jsonl, .parquet, .json and .csv"),
    "binary": ("x.json", lambda p: p.write_bytes(b"\xff\xfe"), "is not UTF-8"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _marked(path: Path, version: bytes) -> None:
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"lora_bench_schema": version}), path)


def _edited(path: Path, name: str, value: object) -> None:
    told = json.loads(path.read_text())
    told["steps"][0][name] = value
    path.write_text(json.dumps(told))


@pytest.mark.parametrize("what", SPOILT)
def test_what_cannot_be_read_is_one_line_and_stops_nothing(tmp_path: Path, what: str) -> None:
    name, spoil, told = SPOILT[what]
    spoil(tmp_path / name)
    good = recorded.benchmarks(tmp_path / "good.parquet")
    report = reports.load(tmp_path / name, good)
    assert len(report.benchmarks) == 48
    ((file, problem),) = report.problems.to_numpy().tolist()
    assert file == str(tmp_path / name)
    assert told in problem
    assert "\n" not in problem


ODD = (None, True, -1, 0, 1e308, float("nan"), "", "x", [], {}, [1], {"a": 1}, 10**30, "\ud800", "\0", "2026-13-99")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inside for place in ((*path, key), *places(one, (*path, key)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_odd_value_anywhere_breaks_nothing(tmp_path: Path, data: st.DataObject) -> None:
    """It is shown, or the file is told of in one line."""
    write = data.draw(st.sampled_from([recorded.conformance, recorded.simulate, recorded.crossover, recorded.history]))
    path = write(tmp_path / f"odd.json{'l' * (write is recorded.conformance)}")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    *inside, last = data.draw(st.sampled_from(places(lines)))
    at: Any = lines
    for key in inside:
        at = at[key]
    at[last] = data.draw(st.sampled_from(ODD))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = reports.load(path)
    assert (report.read, len(report.problems)) in {(1, 0), (0, 1)}
    assert full(content(report))


def test_absent_and_bare(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    problems = reports.load(tmp_path / "bare", tmp_path / "absent").problems["problem"].tolist()
    assert problems == ["holds no results", "no such file or folder"]


def test_a_folder_is_searched_and_no_file_taken_twice(tmp_path: Path) -> None:
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    recorded.conformance(tmp_path / "a" / "results.jsonl")
    (tmp_path / "a" / ".hidden" / "part.jsonl").write_text("")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    report = reports.load(tmp_path, tmp_path / "a" / "results.jsonl")
    assert (report.read, len(report.problems)) == (1, 0)


def test_suites_of_different_versions_are_told_apart(tmp_path: Path) -> None:
    recorded.conformance(tmp_path / "a.jsonl", started="2026-01-01T00:00:00+00:00")
    recorded.conformance(tmp_path / "b.jsonl", started="2026-02-01T00:00:00+00:00", digest="e", suite="0.2.0")
    report = reports.load(tmp_path)
    assert [suite.title for suite in report.suites] == ["suite 0.2.0 (e)", "suite 0.1.0 (d)"]
    assert len(report.backends) == 6
    assert "were judged by different suites, and each has a matrix of its own" in report.notes[0]


def test_of_a_trial_in_several_runs_the_fullest_then_the_newest_verdict_is_shown(tmp_path: Path) -> None:
    red = record("a", "forward", "FAIL")
    samples.write(tmp_path / "full.jsonl", [red], header={"profile": "full", "started": "2026-01-01T00:00:00+00:00"})
    later = {"profile": "quick", "started": "2026-02-01T00:00:00+00:00"}
    more = record("a", "gradients", "PASS")
    samples.write(tmp_path / "quick.jsonl", [record("a", "forward", "PASS"), more], header=later)
    report = reports.load(tmp_path)
    shown = report.conformance[report.conformance["shown"]]
    assert shown[["invariant", "verdict"]].to_numpy().tolist() == [["forward", "FAIL"], ["gradients", "PASS"]]
    assert report.backends["profiles"].tolist() == ["full and quick"]
    (note,) = report.notes
    assert note.startswith("Judged in more than one run, and of each trial the fullest, then the newest verdict is sh")
    assert note.endswith(": a 1.0 (1 of 1 verdicts that are not shown say otherwise)")


def test_two_versions_of_a_backend_stand_beside_each_other(tmp_path: Path) -> None:
    for n, version in enumerate(("1.0", "2.0")):
        verdict = record("a", "forward", ("FAIL", "PASS")[n]) | {"version": version}
        backends = [{"reference": "a", "name": "a", "version": version}]
        samples.write(tmp_path / f"{n}.jsonl", [verdict], header={"backends": backends})
    report = reports.load(tmp_path)
    (suite,) = report.suites
    assert {name: cell.verdict for (_, name), cell in suite.matrix.cells.items()} == {"a@1.0": "FAIL", "a@2.0": "PASS"}
    assert report.backends[["backend", "version", "red"]].to_numpy().tolist() == [["a", "1.0", 1], ["a", "2.0", 0]]


def test_the_readme_shows_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- load -->\n```python\n(.*?)```", text, re.DOTALL)
    for folder, write in (("results/mine", recorded.conformance), ("runs", recorded.benchmarks)):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / ("a.jsonl" if "results" in folder else "a.parquet"))
    monkeypatch.chdir(tmp_path)
    *lines, red, ratios = code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert eval(red, names)["backend"].tolist() == ["wrong", "wrong"]
    assert len(eval(ratios, names)) == 6


def test_schemas_agree_with_those_who_write_them() -> None:
    assert (SCHEMA, inputs.SCHEMA) == (CONFORMANCE_SCHEMA, bench_record.SCHEMA_VERSION)
    assert set(VERDICTS) == {verdict.value for verdict in Verdict}
    assert {verdict.value for verdict in Verdict if verdict.red} == RED
    assert set(Record.__dataclass_fields__) == set(reports.results.Record.__dataclass_fields__)
    assert inputs.BUSY == environment._BUSY
    assert (inputs.KEY, inputs.FROZEN, inputs.OK) == (bench_record.KEY, bench_record.FROZEN, bench_record.Status.OK)
    assert set(inputs.WANTED) <= set(bench_record.SCHEMA.names)
