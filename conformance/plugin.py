"""The pytest plugin: options that name backends. Without ``--lora-backend`` it does nothing and imports nothing."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("LoRA conformance", "LoRA conformance (pytest --pyargs conformance --lora-backend NAME)")
    option = group.addoption
    option(
        "--lora-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="backend to judge: a registered name or package.module:object; may be repeated",
    )
    option(
        "--lora-profile",
        choices=("quick", "full"),
        default="full",
        help="how many cases are drawn per trial (default: full)",
    )
    option("--lora-seed", type=int, default=0, metavar="N", help="seed of all that is drawn (default: 0)")
    option(
        "--lora-model",
        action="append",
        default=[],
        metavar="PATH_OR_ID",
        help="a transformers model to judge on too, besides the tiny ones; may be repeated",
    )
    option("--lora-results", type=Path, metavar="FILE", help="write the records to this new file, as JSON Lines")
    option(
        "--lora-timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="limit per trial (default: 60); with pytest-xdist it also ends code that holds the GIL",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise ValueError(f"must be above 0: {text}")
    return seconds


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """After pytest's own faulthandler, which a worker's limit replaces."""
    path: Path | None = config.getoption("lora_results")
    if not config.getoption("lora_backend"):
        if path is not None:
            raise pytest.UsageError("--lora-results needs --lora-backend: there is nothing to record")
        return
    workerinput: dict[str, str] | None = getattr(config, "workerinput", None)
    if workerinput is None:
        _check(config, path)
    _register(config, path, workerinput)


def _check(config: pytest.Config, path: Path | None) -> None:
    from conformance.discovery import UsageError, check_name
    from conformance.models import check_model

    try:
        for reference in config.getoption("lora_backend"):
            check_name(reference)
        for model in config.getoption("lora_model"):
            check_model(model)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    if path is not None and path.exists():
        raise pytest.UsageError(f"--lora-results: {path} exists; results are never overwritten")
    if path is not None and not path.absolute().parent.is_dir():
        raise pytest.UsageError(f"--lora-results: there is no folder {path.absolute().parent}")


def _register(config: pytest.Config, path: Path | None, workerinput: dict[str, str] | None) -> None:
    """A worker judges, the controller of workers records, and a process without workers does both."""
    from conformance.recording import FOLDER, JUDGE, RECORDER, Recorder

    if workerinput is None:
        config.pluginmanager.register(Recorder(config, path), RECORDER)
    if workerinput is not None or config.getoption("dist", "no") == "no":
        from conformance.judging import SESSION, Session

        folder = Path(workerinput[FOLDER]) if workerinput is not None else None
        worker = workerinput["workerid"] if workerinput is not None else ""
        session = Session(config, folder, worker)
        config.stash[SESSION] = session
        config.pluginmanager.register(session, JUDGE)
