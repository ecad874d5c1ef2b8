"""Every invariant against every backend that is named: ``pytest --pyargs conformance --lora-backend NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.record import Verdict
from reports.escape import plain

if TYPE_CHECKING:
    from conformance.plan import Broken
    from conformance.trial import Trial

_HOW = "no backend is named: add --lora-backend NAME (see `lora-conformance list backends`) or package.module:object"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from conformance.judging import SESSION

    session = metafunc.config.stash.get(SESSION, None)
    if session is None:
        nothing = pytest.param(None, id="no-backend", marks=pytest.mark.skip(reason=_HOW))
        metafunc.parametrize("trial", [nothing])
        return
    metafunc.parametrize("trial", [pytest.param(item, id=plain(item.id)) for item in session.plan.items])


def test_invariant(trial: Trial | Broken, request: pytest.FixtureRequest) -> None:
    from conformance.judging import SESSION

    record = request.config.stash[SESSION].judge(trial, request.node)
    if record.verdict.red:
        pytest.fail(plain(record.failure or f"{record.verdict} {record.invariant}: {record.reason}"), pytrace=False)
    if record.verdict is Verdict.GAP:
        pytest.xfail(plain(f"known gap: {record.reason}"))
    if record.verdict is Verdict.UNSUPPORTED:
        pytest.skip(plain(record.reason))
