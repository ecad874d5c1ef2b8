"""Find backends: by registered name (entry points), or as ``package.module:object``."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from conformance.command_line import hint
from conformance.contract import Backend

GROUP = "lora_conformance.backends"


class UsageError(ValueError):
    """What the user asked for does not exist; the message is one line with what to do next."""


class LoadError(Exception):
    """The backend exists and cannot be used; the cause is chained."""


def registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def check_name(reference: str) -> None:
    """Without importing anything.

    Raises:
        UsageError: neither a registered name nor of the form ``package.module:object``.
    """
    known = registered()
    if reference in known or _is_path(reference):
        return
    near = hint(reference, known, f"registered are {', '.join(known) or 'none'}.")
    raise UsageError(f"unknown backend {reference!r}: {near} Or name one as package.module:object")


def load(reference: str) -> Backend:
    """Import a backend.

    Raises:
        UsageError: no such name.
        LoadError: the import fails, or what it gives is no backend.
    """
    check_name(reference)
    target = registered()[reference].value if reference in registered() else reference
    module, _, attribute = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a backend is often a file in the folder where its author works
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise LoadError(f"backend {reference!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(found, Backend):
        raise LoadError(f"{reference!r} is no backend: {_lacks(found)}")
    return found


def _is_path(reference: str) -> bool:
    module, colon, attribute = reference.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _lacks(found: object) -> str:
    facets = [name for name in ("vjp", "attach", "dump") if hasattr(found, name)]
    if facets:
        return f"a {type(found).__name__} with {', '.join(facets)}; wrap it in a conformance.contract.Backend"
    if callable(found):
        return "a function; wrap it with conformance.torch_operator.torch_operator(function, name=...)"
    return f"a {type(found).__name__}, not a conformance.contract.Backend (a Manifest and at least one facet)"
