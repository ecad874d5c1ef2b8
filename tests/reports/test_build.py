"""A report on disk: the page, the Markdown and the tables hold the same numbers; folders are not written over."""

import json
import math
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest
import recorded
import samples
import shown
from samples import record
from typer.testing import CliRunner

import reports
from reports.build import FolderError, build
from reports.cli import app
from reports.inputs.benchmarks import FROZEN
from reports.text import short

EVIL = "<script>alert(1)</script>\x1b[31m\u202e|`</td>'\"&"
SVG_TAGS = {"svg", "g", "path", "line", "text", "rect", "tspan", "title", "clipPath", "defs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    build(reports.load(recorded.everything(root / "all")), root / "out")
    return root / "out"


def command(*arguments: object, **environment: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_everything_is_there(folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"index.html", "report.md", "summary.md", "lora-report.json", "tables/columns.csv"} <= names
    for table in ("conformance", "benchmarks", "kills", "simulated_memory", "crossover", "history"):
        assert {f"tables/{table}.csv", f"tables/{table}.parquet"} <= names
    for figure in ("overall-0", "case-0-ratio-to-frozen", "case-0-ratio-to-peft", "case-0-tokens-s", "case-0-pareto"):
        assert {f"figures/{figure}.svg", f"figures/{figure}.png"} <= names
    assert {"figures/simulated-0.svg", "figures/crossover-0.svg", "figures/history-0.svg"} <= names


def test_page_and_markdown_show_the_same_cells(folder: Path) -> None:
    page, markdown = shown.page(folder), shown.markdown(folder)
    compared = 0
    for name, rows in page.items():
        if name == "matrix":
            continue
        texts = [[cell.text for cell in row] for row in rows]
        assert texts in markdown.values(), name
        compared += sum(map(len, texts))
    assert compared > 200


def test_the_numbers_behind_the_page_are_those_of_the_csv(folder: Path) -> None:
    page = shown.page(folder)
    head, *rows = page["case-0"]
    assert [cell.text for cell in head][2:7] == ["time", "throughput", "× frozen", "× peft", "peak memory"]
    metrics = ["time_ms", "tokens_s", "ratio_to_frozen", "ratio_to_peft", "peak_alloc_delta", "saved_bytes"]
    modes = {"forward": "fwd", "backward": "bwd", "step": "step"}
    at = {(row["mode"], row["backend"], row["metric"]): row for row in shown.rows(folder, "benchmarks")}
    compared = 0
    for mode, backend, *cells in rows:
        for metric, cell in zip(metrics, cells, strict=False):
            row = at.get((modes[mode.text], backend.text.split()[0], metric))
            if row is None or row["value"] == "":
                assert cell.value is None
                assert cell.text in {"–", "wrong", "1 by definition"}
            else:
                assert cell.value == float(row["value"])
                compared += 1
    assert compared == 9 * 4 + 6 + 3
    summary = {row[0].text: row for row in page["summary"]}
    backends = {row["backend"]: row for row in shown.rows(folder, "backends")}
    for name, row in backends.items():
        passed, red = summary[f"{name} {row['version']}"][2:4]
        assert (passed.value, red.value) == (float(row["passed"]), float(row["red"]))
        assert passed.text == f"{row['passed']} of {row['trials']}"


def test_simulated_and_crossover_are_those_of_the_csv(folder: Path) -> None:
    page = shown.page(folder)
    head, *rows = page["simulated-0"]
    names = [cell.text for cell in head]
    simulated = shown.rows(folder, "simulated")
    assert [row[names.index("peak")].value for row in rows] == [float(row["peak"]) for row in simulated]
    held = [row for row in shown.rows(folder, "simulated_memory") if row["category"] == "activations"]
    assert [row[names.index("activations")].value for row in rows] == [float(row["bytes"]) for row in held]
    assert {row[names.index("gradients")].text for row in rows} == {"–"}  # not recorded, so not 0
    ratios = [row[2].value for row in page["crossover-0"][1:]]
    assert ratios == [float(row["time_ratio"]) for row in shown.rows(folder, "crossover")]


def test_csv_and_parquet_agree_and_load_again(folder: Path) -> None:
    for path in (folder / "tables").glob("*.parquet"):
        table = pd.read_parquet(path)
        rows = shown.rows(folder, path.stem)
        kept = table[table["shown"]] if path.stem == "benchmarks" else table
        assert len(rows) == len(kept)
        for name in table.columns:
            if table[name].dtype == "float64":
                values = [math.nan if row[name] == "" else float(row[name]) for row in rows]
                pd.testing.assert_series_equal(pd.Series(values), kept[name].reset_index(drop=True), check_names=False)
    described = shown.rows(folder, "columns")
    assert {row["table"] for row in described} >= {"conformance", "benchmarks", "problems"}
    assert all(row["meaning"] for row in described)


def test_units_are_shown(folder: Path) -> None:
    (step,) = [row for row in shown.page(folder)["case-0"] if [c.text for c in row[:2]] == ["step", "peft"]]
    assert [cell.text for cell in step[2:7]] == [
        "1.200 ms [1.140, 1.260]",
        "26,667 tokens/s [25,333, 28,000]",
        "1.200 [1.140, 1.260]",
        "1 by definition",
        "1.144 MiB",
    ]


def test_figures_are_drawn(folder: Path) -> None:
    paths = list((folder / "figures").glob("*.svg"))
    assert len(paths) == 10
    for path in paths:
        assert {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()} <= SVG_TAGS
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_who_does_not_conform_is_marked_and_has_no_time(folder: Path) -> None:
    wrong = [row for row in shown.page(folder)["case-0"] if row[1].text.startswith("wrong")]
    assert {row[1].text for row in wrong} == {"wrong does not conform"}
    assert {cell.text for row in wrong for cell in row[2:4]} == {"wrong"}
    assert "wrong, step: wrong, red in forward" in (folder / "index.html").read_text()


def evil(folder: Path) -> Path:
    """Every text that a backend, or whoever wrote a file, could choose."""
    folder.mkdir()
    bad = {"failure": EVIL, "cause": EVIL, "traceback": EVIL, "reproduce": EVIL, "reason": EVIL, "on": EVIL}
    records = [
        record("a", "forward", "ERROR", **bad) | {"backend": EVIL, "version": EVIL, "dtype": EVIL, "facet": EVIL},
        record("a", "gradients", "GAP", reason=EVIL, upstream=f"https://example.org/{EVIL} javascript:alert(1)"),
    ]
    header = {"versions": {EVIL: EVIL}, "command": EVIL, "suite": EVIL, "models": [EVIL]}
    samples.write(folder / "results.jsonl", records, header=header)
    rows = []
    for backend, ms in ((FROZEN, 1.0), (EVIL, 1.1), ("peft", 1.2)):
        rows += recorded.backend_rows(backend, ms, recorded.case(), device_name=EVIL, host=EVIL, commit=EVIL)
    failed = {"status": "crash", "error": EVIL, "device_name": EVIL}
    rows.append(recorded.figure("b", "time_ms", None, recorded.case(), **failed))
    recorded.write(recorded.table(rows), folder / "a.parquet")
    recorded.kills(folder / "m")
    for path in (folder / "m").iterdir():
        path.write_text(path.read_text().replace("doubled", EVIL.replace('"', "")))
    for write in (recorded.simulate, recorded.crossover, recorded.history):
        path = write(folder / f"{write.__name__}.json")
        told = json.dumps(EVIL)[1:-1]
        path.write_text(path.read_text().replace("peft", told).replace("a GPU", told).replace("llama-2-7b", told))
    (folder / f"{'<script>'}.json").write_text("no")
    return folder


def test_nothing_of_a_backend_becomes_markup(tmp_path: Path) -> None:
    report = reports.load(evil(tmp_path / "evil"))
    assert len(report.problems) == 1
    build(report, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    parser = shown.Tables()
    parser.feed(text)
    honest = shown.Tables()
    build(reports.load(recorded.everything(tmp_path / "all")), tmp_path / "honest")
    honest.feed((tmp_path / "honest" / "index.html").read_text())
    assert set(parser.tags) <= set(honest.tags) | {"li"}
    assert parser.tags.count("script") == honest.tags.count("script")
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "javascript:" not in text
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in {".html", ".md", ".csv", ".json", ".svg"}:
            written = path.read_text(encoding="utf-8")
            assert "\x1b" not in written
            assert "\u202e" not in written
    for path in (tmp_path / "out" / "figures").glob("*.svg"):
        assert {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()} <= SVG_TAGS
    for name in ("report.md", "summary.md"):
        outside = (tmp_path / "out" / name).read_text().split("```")[::2]  # of blocks of code
        assert not any("<script" in part for part in outside)


def test_an_older_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    report = reports.load(recorded.conformance(tmp_path / "r.jsonl"))
    out = tmp_path / "out"
    build(report, out)
    (out / "badges" / "stale.json").write_text("{}")
    build(report, out)
    assert not (out / "badges" / "stale.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"r.jsonl", "out"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(FolderError, match="holds something other than a report: name a new or empty folder"):
        build(report, tmp_path / "mine")
    with pytest.raises(FolderError, match="is no folder"):
        build(report, tmp_path / "r.jsonl")
    assert reports.load(tmp_path).read == 1  # a report is not read as results


def test_an_empty_report_says_what_would_fill_it(tmp_path: Path) -> None:
    build(reports.load(), tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Not among the inputs: `lora-bench run --backend NAME --out DIR` writes it." in text
    assert "Not among the inputs: `lora-conformance mutants --out DIR` writes it." in text


def test_badges(folder: Path) -> None:
    badges = {path.stem: json.loads(path.read_text()) for path in (folder / "badges").iterdir()}
    assert badges["mine"] == {
        "schemaVersion": 1,
        "label": "LoRA · mine",
        "message": "conforms, 1 of 2 trials pass",
        "color": "brightgreen",
    }
    assert (badges["peft"]["color"], badges["wrong"]["color"]) == ("yellowgreen", "red")


def test_badges_of_odd_names_do_not_meet(tmp_path: Path) -> None:
    records = [record(name, "forward", "PASS") for name in ("../a", "a", "A", "..", "a b", "a/b")]
    build(reports.load(samples.write(tmp_path / "r.jsonl", records)), tmp_path / "out")
    names = [path.name for path in (tmp_path / "out" / "badges").iterdir()]
    assert len({name.lower() for name in names}) == 6
    assert all(name.endswith(".json") and not name.startswith(".") for name in names)


def test_the_command_and_its_exit_status(tmp_path: Path) -> None:
    good = recorded.everything(tmp_path / "all")
    status, text = command("build", good, "--out", tmp_path / "out")
    assert status == 0
    assert "2 of 3 backends conform to suite 0.1.0 (d)" in text
    assert f"wrote {tmp_path / 'out' / 'index.html'}" in text
    status, text = command("build", good, tmp_path / "absent", "--out", tmp_path / "out")
    assert status == 1
    assert f"{tmp_path / 'absent'}: no such file or folder\n" in text
    status, text = command("build", tmp_path / "absent", "--out", tmp_path / "none")
    assert status == 2
    assert "nothing could be read, nothing is written" in text
    assert not (tmp_path / "none").exists()
    status, text = command("build", good, "--out", good)
    assert status == 2
    assert text.startswith("lora-report: ")
    assert text.count("\n") == 1


def test_step_summary(tmp_path: Path) -> None:
    good = recorded.conformance(tmp_path / "r.jsonl")
    steps = tmp_path / "steps.md"
    steps.write_text("before\n")
    status, _ = command("build", good, "--out", tmp_path / "out", "--step-summary", GITHUB_STEP_SUMMARY=str(steps))
    assert status == 0
    assert steps.read_text().startswith("before\n# LoRA report\n")
    status, text = command("build", good, "--out", tmp_path / "out", "--step-summary", GITHUB_STEP_SUMMARY="")
    assert status == 2
    assert "$GITHUB_STEP_SUMMARY is not set" in text


def test_the_short_report_is_cut_between_its_parts(tmp_path: Path) -> None:
    made = build(reports.load(recorded.conformance(tmp_path / "r.jsonl")), tmp_path / "out")
    whole = short(made)
    for limit in range(200, len(whole.encode()), 150):
        cut = short(made, limit)
        assert len(cut.encode()) <= limit
        assert cut.endswith("*Cut here: the rest is in report.md.*\n")
    assert short(made, len(whole.encode())) == whole


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "out"
    else:
        tmp_path.chmod(0o500)
        out = tmp_path / "out"
    with pytest.raises(FolderError, match="cannot be written: "):
        build(reports.load(), out)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reports.build", None)
    status, text = command("build", tmp_path, "--out", tmp_path / "out")
    assert status == 2
    assert "pip install 'lora-conformance[reports]'" in text
