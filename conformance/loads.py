"""Cases in which the files of further adapters are loaded into a model that has one already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conformance.model_cases import DrawModel, ModelCase, linear_names
from conformance.models import load
from conformance.strategies import ALPHAS
from conformance.subject import Subject


@dataclass(frozen=True)
class Loads(ModelCase):
    """The case's own adapter, and further ones that are loaded one after the other.

    states: what state the model is in at each load. sets, ranks, alphas: targets, r and alpha of each further adapter.
    from_file: the first adapter comes from a file too. taken: a load asks for a name that another adapter has.
    """

    states: tuple[str, ...] = ("plain",)
    sets: tuple[tuple[str, ...], ...] = ()
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    from_file: bool = False
    taken: bool = False

    @property
    def merged(self) -> bool:
        return "merged" in self.states

    @property
    def training(self) -> bool:
        return "training" in self.states

    @property
    def disabled(self) -> bool:
        return "disabled" in self.states

    @property
    def widening(self) -> bool:
        """A further adapter is at modules that have none before it."""
        return not set(self.targets).issuperset(name for names in self.sets for name in names)

    @property
    def each(self) -> list[ModelCase]:
        """A case for each adapter, the first one's first. The further ones have patterns where that has."""
        return [self, *map(self._further, range(len(self.states)))]

    def _further(self, n: int) -> ModelCase:
        targets, r, alpha = self.sets[n], self.ranks[n], self.alphas[n]
        ranks = ((targets[0], r + 1),) if self.rank_pattern else ()
        alphas = ((targets[-1], alpha + 1),) if self.alpha_pattern else ()
        known = {name: getattr(self, name) for name in ModelCase.__dataclass_fields__}
        more = {"rank_pattern": ranks, "alpha_pattern": alphas, "seed": self.seed + n + 1}
        return ModelCase(**known | {"targets": targets, "r": r, "alpha": alpha} | more)


@dataclass(frozen=True)
class DrawLoads(DrawModel):
    """states: those that a model may be in; each is drawn at most once, in any order."""

    states: tuple[str, ...] = ("plain",)

    def __call__(self, subject: Subject) -> SearchStrategy[Loads]:
        return _draw(super().__call__(subject), self, subject)

    def rebuild(self, given: Mapping[str, Any]) -> Loads:
        return Loads.from_fields(given)  # type: ignore[return-value]

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> Loads:
        names = linear_names(load(subject.on, subject.dtype).module)
        further = {"sets": [names[:2]], "ranks": [3], "alphas": [5.0]}
        where = {"model": subject.on, "dtype": subject.dtype}
        return self.rebuild({"targets": names[:1], "r": 2, "alpha": 3.0, **further, **given, **where})


@st.composite
def _draw(draw: DrawFn, plain: SearchStrategy[ModelCase], ask: DrawLoads, subject: Subject) -> Loads:
    case = draw(plain)
    names = linear_names(load(subject.on, subject.dtype).module)
    states = draw(st.lists(st.sampled_from(ask.states), min_size=1, max_size=len(ask.states), unique=True))
    ranks = [draw(st.sampled_from((3, 1, 2, 4, 8))) for _ in states]
    sets: list[tuple[str, ...]] = []
    for _ in states:  # modules without an adapter first, while there are any
        rest = [name for name in names if name not in case.targets + sum(sets, ())]
        more = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2))
        sets.append(tuple(dict.fromkeys((draw(st.sampled_from(rest or names)), *more))))
    known = {name: getattr(case, name) for name in ModelCase.__dataclass_fields__}
    return Loads(
        **known,
        states=tuple(states),
        sets=tuple(sets),
        ranks=tuple(ranks),
        alphas=tuple(draw(st.sampled_from([alpha for alpha in ALPHAS if alpha != r])) for r in ranks),
        from_file=draw(st.booleans()),
        taken=len(ask.operations) > 1 and (not case.operation or draw(st.booleans())),
    )
