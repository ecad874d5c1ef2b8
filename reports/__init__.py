"""Recorded results in, comparison out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.loading import load as load
    from reports.report import Report as Report

__all__ = ["Report", "load"]


def __getattr__(name: str) -> Any:
    """pandas is imported only where it is needed: the other packages use the terminal's part alone."""
    if name == "load":
        from reports.loading import load

        return load
    if name == "Report":
        from reports.report import Report

        return Report
    raise AttributeError(f"module 'reports' has no attribute {name!r}")
