"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

PATIENCE = 300.0  # seconds: a busy machine starts processes slowly


def when(there: Callable[[], Any]) -> Any:
    """What ``there`` gives as soon as it gives anything."""
    deadline = time.monotonic() + PATIENCE
    while not (found := there()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def gone(pid: int) -> bool:
    """Ended, whether or not anybody has asked how."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
