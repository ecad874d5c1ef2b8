"""``list``: what there is to judge by, and what to judge."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

from reports.escape import inline

_WIDTH = 100
_COMMENTED = re.compile(r'^\s+[A-Z_]+ = "(\w+)"(?:  # (.*))?$', re.MULTILINE)


def invariants() -> Iterator[str]:
    import conformance.invariants  # noqa: F401 - fills the registry
    from conformance.invariant import REGISTRY

    yield f"Invariants ({len(REGISTRY)})"
    family = ""
    for invariant in REGISTRY.values():
        if invariant.family != family:
            family = invariant.family
            yield f"\n  {family}"
        facets = ", ".join(sorted(invariant.checks))
        yield f"    {invariant.id}  [{facets}]"
        yield from _indented(invariant.statement, 6)


def backends() -> Iterator[str]:
    """Each registered one is imported, since only its manifest says what it offers."""
    from conformance.discovery import LoadError, load, registered

    yield "Backends"
    for name in registered():
        try:
            backend = load(name)
        except LoadError as error:
            yield f"\n  {name}  cannot be used"
            yield from _indented(inline(error), 4)
            continue
        manifest = backend.manifest
        yield f"\n  {inline(name)}  {inline(manifest.version)}"
        yield f"    facets    {', '.join(backend.facets)}"
        yield f"    dtypes    {', '.join(map(inline, manifest.dtypes))}"
        yield from _labelled("features", ", ".join(sorted(manifest.features)) or "none")
        if manifest.gaps:
            yield from _labelled("gaps", ", ".join(dict.fromkeys(inline(gap.invariant) for gap in manifest.gaps)))


def features() -> Iterator[str]:
    """The enumeration's members with the comments that its source gives them."""
    from conformance.contract import Feature

    yield "Features"
    for name, comment in _COMMENTED.findall(inspect.getsource(Feature)):
        yield f"  {name:<16}{comment}".rstrip()


def _labelled(label: str, text: str) -> Iterator[str]:
    first = f"    {label:<10}"
    yield from textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def _indented(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * columns, subsequent_indent=" " * columns)
