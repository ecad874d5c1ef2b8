"""The plugin, in processes of its own: every backend named gets a verdict on every trial, whatever it does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reports.results import Results, read

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTEST_ADDOPTS", None)


def run_pytest(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugins = ("-p", "xdist.plugin", "-p", "conformance.plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *plugins, "--pyargs", "conformance", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
    )


def judge(folder: Path, names: str, *arguments: object) -> tuple[subprocess.CompletedProcess[str], Results]:
    backends = [part for name in names.split() for part in ("--lora-backend", f"fakes:{name}")]
    out = folder / "results.jsonl"
    done = run_pytest(folder, *backends, "--lora-profile", "quick", "--lora-results", out, *arguments)
    return done, read(out)


def verdicts(results: Results, backend: str) -> dict[str, str]:
    return {record.invariant: record.verdict for record in results.records if record.backend == backend}


@pytest.fixture(scope="module")
def with_workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Results]:
    names = "good exits segfaults spins sleeps refuses wrong missing"
    return judge(tmp_path_factory.mktemp("workers"), names, "-n", 2, "--lora-timeout", 1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Results]:
    names = "good spins leaves wrong gap stale twin lost_gap nothing"
    return judge(tmp_path_factory.mktemp("alone"), names, "--lora-timeout", 1, "-rA")


class TestWithWorkers:
    def test_a_death_costs_its_own_trial_only(self, with_workers: tuple[object, Results]) -> None:
        results = with_workers[1]
        unsupported = {"grouped": "UNSUPPORTED"}
        assert verdicts(results, "good") == {"answers": "PASS", "rank-two": "PASS", **unsupported}
        assert verdicts(results, "exits") == {"answers": "CRASH", "rank-two": "CRASH", **unsupported}
        assert verdicts(results, "segfaults") == {"answers": "CRASH", "rank-two": "CRASH", **unsupported}
        assert verdicts(results, "spins") == {"answers": "TIMEOUT", "rank-two": "TIMEOUT", **unsupported}
        assert verdicts(results, "sleeps") == {"answers": "TIMEOUT", "rank-two": "TIMEOUT", **unsupported}
        assert verdicts(results, "refuses") == {"answers": "ERROR", "rank-two": "ERROR", **unsupported}
        assert verdicts(results, "wrong") == {"answers": "PASS", "rank-two": "FAIL", **unsupported}
        assert verdicts(results, "fakes:missing") == {"import": "ERROR"}

    def test_a_crash_tells_case_stack_and_command(self, with_workers: tuple[object, Results]) -> None:
        record = next(r for r in with_workers[1].records if r.backend == "segfaults" and r.invariant == "answers")
        lines = record.failure.split("\n")
        assert lines[:2] == ["answers: The operator gives a y.", "  backend    segfaults 1.0 · operator · float32"]
        assert lines[2].startswith("  case       in_features=")
        assert lines[3] == "  crash      the process died: Fatal Python error: Segmentation fault"
        assert any("in string_at" in line for line in lines[4:])
        start = "  reproduce  lora-conformance reproduce answers --backend fakes:segfaults --facet operator --case "
        assert lines[-1].startswith(start)
        assert record.case["dtype"] == "float32"

    def test_a_timeout_tells_where_the_code_was(self, with_workers: tuple[object, Results]) -> None:
        record = next(r for r in with_workers[1].records if r.backend == "spins")
        assert record.cause == "no answer within 1 s"
        assert "in _spin" in record.failure
        assert "execnet" not in record.failure
        assert 0.9 < record.seconds < 10

    def test_what_follows_from_what(self, with_workers: tuple[object, Results]) -> None:
        after = {(r.backend, r.invariant): r.after for r in with_workers[1].red}
        assert after["refuses", "answers"] == ()
        assert after["refuses", "rank-two"] == ("answers",)
        assert after["wrong", "rank-two"] == ()

    def test_the_header_knows_versions_that_the_writer_never_imported(
        self, with_workers: tuple[object, Results]
    ) -> None:
        results = with_workers[1]
        assert results.backends["good"] == "1.0"
        assert results.backends["fakes:missing"] == ""
        assert [i.id for i in results.invariants] == ["import", "answers", "rank-two", "grouped"]
        assert {"torch", "numpy", "pytest"} <= set(results.versions)

    def test_status(self, with_workers: tuple[subprocess.CompletedProcess[str], Results]) -> None:
        assert with_workers[0].returncode == 1


class TestAlone:
    def test_verdicts(self, alone: tuple[object, Results]) -> None:
        results = alone[1]
        assert verdicts(results, "spins")["answers"] == "TIMEOUT"
        assert verdicts(results, "leaves")["answers"] == "ERROR"
        assert verdicts(results, "gap") == {"answers": "GAP", "rank-two": "GAP", "grouped": "UNSUPPORTED"}
        assert verdicts(results, "stale")["rank-two"] == "GAP-CLOSED"

    def test_what_cannot_be_judged_is_never_absent(self, alone: tuple[object, Results]) -> None:
        causes = {r.backend: r.cause for r in alone[1].records if r.invariant == "import"}
        assert causes["fakes:twin"] == "its name 'good' is already that of 'fakes:good': give it another"
        assert causes["fakes:lost_gap"] == "declares a gap in 'no-such', which is no invariant"
        assert "not a conformance.contract.Backend" in causes["fakes:nothing"]

    def test_pytest_shows_the_failure_and_nothing_else(
        self, alone: tuple[subprocess.CompletedProcess[str], Results]
    ) -> None:
        done, results = alone
        record = next(r for r in results.records if r.backend == "wrong" and r.red)
        assert record.failure in done.stdout
        assert "def test_invariant" not in done.stdout

    def test_outcomes(self, alone: tuple[subprocess.CompletedProcess[str], Results]) -> None:
        done = alone[0]
        assert done.returncode == 1
        assert "known gap: rank 3 is | refused" in done.stdout
        assert "does not declare grouped_conv" in done.stdout
        assert " 2 xfailed" in done.stdout


class TestUsage:
    def test_without_a_backend_one_skip_says_how(self, tmp_path: Path) -> None:
        done = run_pytest(tmp_path, "-rs")
        assert done.returncode == 0
        assert "1 skipped" in done.stdout
        assert "no backend is named: add --lora-backend NAME" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--lora-backend", "nump"], "unknown backend 'nump'"),
            (["--lora-results", "r.jsonl"], "--lora-results needs --lora-backend: there is nothing to record"),
            (["--lora-backend", "fakes:good", "--lora-results", "pytest.ini"], "pytest.ini exists; results are never"),
            (["--lora-backend", "fakes:good", "--lora-results", "no/r.jsonl"], "there is no folder"),
            (["--lora-backend", "fakes:good", "--lora-timeout", "0"], "argument --lora-timeout: invalid"),
        ],
    )
    def test_bad_usage_is_one_line(self, tmp_path: Path, arguments: list[str], message: str) -> None:
        done = run_pytest(tmp_path, *arguments)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    def test_installed_but_unused_it_imports_nothing(self) -> None:
        code = "import sys, conformance.plugin; print(*sorted(m for m in sys.modules if m.startswith('conformance')))"
        code += "; assert not {'torch', 'numpy', 'hypothesis', 'rich'} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["conformance", "conformance.plugin"]
