"""Options of ``pytest --pyargs bench``: the benchmarks by hand, on one profile, in this process."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("LoRA benchmarks", "LoRA benchmarks (pytest --pyargs bench --bench-backend NAME)")
    group.addoption(
        "--bench-backend", action="append", default=[], metavar="NAME", help="backend to time; may be repeated"
    )
    group.addoption("--bench-profile", default="cpu-quick", metavar="NAME", help="cases to time (default: cpu-quick)")
    group.addoption("--bench-device", default="cpu", choices=("cpu", "cuda"), help="where (default: cpu)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "job" not in metafunc.fixturenames:
        return
    from bench.canonical import PROFILES
    from bench.jobs import parametrise

    backends = metafunc.config.getoption("bench_backend")
    cases = PROFILES[metafunc.config.getoption("bench_profile")]() if backends else ()
    parametrise(metafunc, list(cases), backends, metafunc.config.getoption("bench_device"))
