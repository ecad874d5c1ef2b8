"""The registry of invariants: one statement each, checked on one or more facets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hypothesis.strategies import SearchStrategy

from conformance.contract import Facet, Feature
from conformance.subject import Subject

CheckFunction = Callable[[Subject, Any], None]


class Drawable(Protocol):
    """Draws the cases of a check; ``rebuild`` makes one again from the fields that a failure printed."""

    def __call__(self, subject: Subject) -> SearchStrategy[Any]:
        """Only cases that the backend claims to serve."""

    def rebuild(self, given: Mapping[str, Any]) -> Any: ...

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> Any:
        """The case that a gap pins, in the subject's dtype and on its model."""

    def lacking(self, subject: Subject) -> str:
        """Why the backend serves none of these cases, or ""."""


@dataclass(frozen=True)
class Check:
    """How an invariant is judged on one facet.

    needs: features without which it says nothing. cost: divides the number of examples; below 1 where a statement has
    many kinds of cases. dtypes: the only ones that it is for, if not all. per_model: on a model facet, run on every
    model, or once on modules of its own. slow: starts processes or compiles, so that the quick profile leaves it out
    and says so.
    """

    function: CheckFunction
    draws: Drawable
    needs: frozenset[Feature]
    cost: float = 1
    dtypes: tuple[str, ...] = ()
    per_model: bool = True
    slow: bool = False


@dataclass
class Invariant:
    """``text`` is the normative statement; ``after`` names the invariants without which this one cannot hold."""

    id: str
    family: str
    text: str
    after: tuple[str, ...] = ()
    checks: dict[Facet, Check] = field(default_factory=dict)

    @property
    def statement(self) -> str:
        """The first sentence of the text, on one line."""
        head = " ".join(self.text.strip().split("\n\n")[0].split())
        return head.rstrip(".") + "."

    def on(
        self,
        *facets: Facet,
        draws: Drawable,
        needs: Iterable[Feature] = (),
        cost: float = 1,
        dtypes: tuple[str, ...] = (),
        per_model: bool = True,
        slow: bool = False,
    ) -> Callable[[CheckFunction], Invariant]:
        """Register the decorated function as the check for these facets; its docstring states the invariant."""

        def register(function: CheckFunction) -> Invariant:
            for facet in facets:
                self.checks[facet] = Check(function, draws, frozenset(needs), cost, dtypes, per_model, slow)
            if not self.text:
                self.text = function.__doc__ or ""
            return self

        return register


REGISTRY: dict[str, Invariant] = {}


def invariant(id: str, *, family: str, after: tuple[str, ...] = ()) -> Invariant:  # noqa: A002 - the field's word
    """A new invariant; ``.on(...)`` gives it its checks."""
    if id in REGISTRY:
        raise ValueError(f"invariant {id!r} is registered twice")
    for earlier in after:
        if earlier not in REGISTRY:
            raise ValueError(f"invariant {id!r} comes after {earlier!r}, which is not registered before it")
    REGISTRY[id] = Invariant(id, family, "", after)
    return REGISTRY[id]
