"""The command: one line for bad usage, the documented exit status, files that hold."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conformance.cli import app
from reports.results import ResultsError, read

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "80", "PYTEST_ADDOPTS": "--no-such-option"}
COMMAND = [sys.executable, "-c", "from conformance.cli import app; app(prog_name='lora-conformance')"]


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = [*COMMAND, *arguments]
    return subprocess.run(given, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, text=True, start_new_session=True, **pipes
    )


def wait_for_records(path: Path, count: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if path.exists() and path.read_text().count('"type": "record"') >= count:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{path} does not grow")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("judged")
    (folder / "conftest.py").write_text("raise SystemError('the conftest of whoever calls us')")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    backends = [part for name in ("good", "wrong", "refuses", "gap") for part in ("-b", f"fakes:{name}")]
    return command(folder, "run", *backends, "--out", "out", "--profile", "quick", "--workers", "2"), folder / "out"


class TestRun:
    def test_red_is_1_and_everything_is_shown(self, judged: tuple[subprocess.CompletedProcess[str], Path]) -> None:
        done, out = judged
        assert done.returncode == 1, done.stderr
        results = read(out / "results.jsonl")
        assert list(results.backends) == ["good", "wrong", "refuses", "gap"]
        for record in results.red:
            if record.backend == "wrong":
                assert record.failure in done.stdout
        assert "1 more follow from answers: rank-two" in done.stdout
        assert "https://example.org/1" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("3 red, 3 passed of 12 trials")
        assert "\x1b" not in done.stdout

    def test_progress_without_a_terminal_is_plain_lines(
        self, judged: tuple[subprocess.CompletedProcess[str], Path]
    ) -> None:
        lines = judged[0].stderr.splitlines()
        assert lines[0] == "judging 12 trials"
        assert lines[-1] == "12 of 12 judged, 3 red"

    def test_files(self, judged: tuple[subprocess.CompletedProcess[str], Path]) -> None:
        out = judged[1]
        assert {path.name for path in out.iterdir()} == {"results.jsonl", "matrix.md", "log.txt"}
        assert "| rank-two | PASS | FAIL | ERROR | GAP |" in (out / "matrix.md").read_text()

    def test_the_printed_command_reproduces(self, judged: tuple[subprocess.CompletedProcess[str], Path]) -> None:
        record = next(r for r in read(judged[1] / "results.jsonl").red if r.backend == "wrong")
        done = command(judged[1], *shlex.split(record.reproduce)[1:])
        assert done.returncode == 1
        assert done.stdout.rstrip() == record.failure
        holds = [word.replace("fakes:wrong", "fakes:good") for word in shlex.split(record.reproduce)[1:]]
        done = command(judged[1], *holds)
        assert (done.returncode, done.stdout) == (0, "rank-two holds in this case\n")

    def test_a_lost_backend_is_2_and_the_others_are_judged(self, tmp_path: Path) -> None:
        done = command(tmp_path, "run", "-b", "fakes:missing", "-b", "fakes:good", "-o", "out", "--profile", "quick")
        assert done.returncode == 2
        why = "AttributeError: module 'fakes' has no attribute 'missing'"
        assert done.stderr.splitlines()[-1] == f"lora-conformance: backend 'fakes:missing' cannot be judged: {why}"
        results = read(tmp_path / "out" / "results.jsonl")
        assert [r.verdict for r in results.records if r.backend == "good"] == ["PASS", "PASS", "UNSUPPORTED"]

    def test_nothing_red_is_0(self, tmp_path: Path) -> None:
        done = command(tmp_path, "run", "-b", "fakes:good", "-o", "out", "--profile", "quick", "--workers", "1")
        assert done.returncode == 0, done.stderr

    def test_a_backend_that_kills_every_worker_on_import(self, tmp_path: Path) -> None:
        (tmp_path / "killer.py").write_text("import os; os._exit(1)")
        done = command(tmp_path, "run", "-b", "killer:backend", "-o", "out")
        assert done.returncode == 2
        assert "a worker died while it imported killer:backend" in done.stderr.splitlines()[-1]


class TestCutOff:
    def test_killed_is_recognised(self, tmp_path: Path) -> None:
        run = start(tmp_path, "run", "-b", "fakes:good", "-b", "fakes:sleeps", "-o", "out", "--profile", "quick")
        results = tmp_path / "out" / "results.jsonl"
        try:
            wait_for_records(results, 2)
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
        with pytest.raises(ResultsError, match=r"is truncated: \d of 6 records and no footer; the run was cut off"):
            read(results)

    def test_interrupted_is_130(self, tmp_path: Path) -> None:
        run = start(tmp_path, "run", "-b", "fakes:good", "-b", "fakes:sleeps", "-o", "out", "--profile", "quick")
        results = tmp_path / "out" / "results.jsonl"
        try:
            wait_for_records(results, 2)
            os.kill(run.pid, signal.SIGINT)
            _, errors = run.communicate(timeout=180)  # a guard against hanging, not a claim of speed
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
        assert run.returncode == 130
        assert errors.splitlines()[-1] == f"interrupted: {Path('out', 'results.jsonl')} is incomplete"
        with pytest.raises(ResultsError, match="is truncated"):
            read(results)


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (
                "run -b nump -o {new}",
                "unknown backend 'nump': did you mean 'numpy'? Or name one as package.module:object",
            ),
            ("run -b numpy -o {full}", "--out {full} is not empty; results are never overwritten"),
            ("run -b numpy -o {full}/file", "--out {full}/file cannot be used: File exists"),
            ("run -b numpy -o {new} --model ../no/such", "model path '../no/such' does not exist"),
            ("reproduce forward-orcle -b numpy --facet layer --case {{}}", "did you mean 'forward-oracle'?"),
            ("reproduce forward-oracle -b numpy --facet lair --case {{}}", "unknown facet 'lair'"),
            ("reproduce forward-oracle -b numpy --facet layer --case {{}}", "backend 'numpy' does not offer layer"),
            ("reproduce forward-oracle -b numpy --facet operator --case {{", "--case is not JSON"),
            ("reproduce forward-oracle -b numpy --facet operator --case []", "--case must be a JSON object"),
            ("reproduce forward-oracle -b numpy --facet operator --case {{}}", "--case: the case is incomplete"),
            ('reproduce forward-oracle -b numpy --facet operator --case {{"q":1}}', "--case: a case has no field q"),
            ('reproduce forward-oracle -b numpy --facet operator --case {{"dtype":"int8"}}', "does not declare int8"),
        ],
    )
    def test_one_line_and_2(self, tmp_path: Path, arguments: str, line: str) -> None:
        full, new = tmp_path / "full", tmp_path / "new"
        full.mkdir()
        (full / "file").touch()
        done = CliRunner().invoke(app, arguments.format(full=full, new=new).split())
        assert done.exit_code == 2, done.output
        assert line.format(full=full, new=new) in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""

    def test_help_and_version(self) -> None:
        assert "Exit status: 0 nothing red" in CliRunner().invoke(app, ["run", "--help"]).stdout
        assert CliRunner().invoke(app, ["--version"]).stdout.startswith("lora-conformance ")

    def test_start_up_imports_nothing_heavy(self) -> None:
        heavy = {"torch", "numpy", "pytest", "hypothesis", "conformance.contract"}
        code = f"import sys, conformance.cli; print({heavy!r} & set(sys.modules))"
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
        )


class TestList:
    def test_features_come_with_their_comments(self) -> None:
        text = CliRunner().invoke(app, ["list", "features"]).stdout
        assert "  rslora\n" in text
        assert "  fused           several projections stacked in one weight, adapted part by part\n" in text

    def test_invariants_come_with_their_statements(self) -> None:
        text = CliRunner().invoke(app, ["list", "invariants"]).stdout
        assert "    forward-oracle  [layer, model, operator]\n      With B != 0, y = x Wᵀ" in text

    def test_backends_that_cannot_be_imported_say_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from importlib.metadata import EntryPoint

        points = {
            n: EntryPoint(n, v, "")
            for n, v in {"numpy": "conformance.backends.numpy:backend", "gone": "gone:x"}.items()
        }
        monkeypatch.setattr("conformance.discovery.registered", lambda: points)
        text = CliRunner().invoke(app, ["list", "backends"]).stdout
        assert "    facets    operator\n" in text
        assert "  gone  cannot be used\n    backend 'gone' cannot be imported: ModuleNotFoundError" in text


def test_records_are_json(judged: tuple[object, Path]) -> None:
    for line in (judged[1] / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
