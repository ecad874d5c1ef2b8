"""Cases with several adapters on one base, each with its own rank, alpha and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conformance.cases import Arrays, Case, InexactCaseError, exact_alpha
from conformance.contract import Array, Feature, Manifest
from conformance.strategies import ALPHAS, Draw
from conformance.subject import Subject
from lora_ref.oracle import Oracle
from lora_ref.rounding import PRECISION_BITS, Bounded
from lora_ref.spec import LoraSpec

_DENSITIES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
SHARES = (1.0, -1.0, 0.5, -2.0, 2.0, -0.5)  # of a combination; powers of two, so that the exact tier stays exact
Adapter = tuple[LoraSpec, Array, Array]


@dataclass(frozen=True)
class Several(Case):
    """The case's own adapter and further ones; ``operations`` is what is done, where an invariant varies that."""

    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    rsloras: tuple[bool, ...] = ()  # of the further ones; none given: as the case's own
    shares: tuple[float, ...] = ()  # weights of a combination
    swapped: bool = False  # the adapter that is looked at is the second one
    operations: tuple[str, ...] = ()

    @cached_property
    def adapters(self) -> tuple[Adapter, ...]:
        """All of them, the case's own first. In the exact tier all their deltas may be added up.

        Raises:
            InexactCaseError: no density keeps the sums exact.
        """
        own = (self.spec, self.arrays.a, self.arrays.b)
        if self.tier == "bounded":
            return (own, *(self._other(nth, None) for nth in range(len(self.ranks))))
        for density in _DENSITIES:
            found = (own, *(self._other(nth, density) for nth in range(len(self.ranks))))
            if self._largest_sum(found) <= 2 ** PRECISION_BITS[self.narrowest]:
                return found
        raise InexactCaseError(self.to_json())

    def _other(self, nth: int, density: float | None) -> Adapter:
        rng = np.random.default_rng([self.seed, 7, nth])
        rslora = self.rsloras[nth] if self.rsloras else self.rslora
        spec = replace(self.spec, r=self.ranks[nth], alpha=self.alphas[nth], rslora=rslora)
        factors = []
        for like, shape in (
            (self.arrays.a, self.geometry.a_shape(spec.r)),
            (self.arrays.b, self.geometry.b_shape(spec.r)),
        ):
            values = rng.standard_normal(shape)
            if density is not None:
                values = np.sign(values) * (rng.random(shape) < density)
            factor = values.astype(like.dtype)
            factor.flags.writeable = False
            factors.append(factor)
        return spec, factors[0], factors[1]

    def _largest_sum(self, adapters: Sequence[Adapter]) -> float:
        """In units of the finest grid that occurs; the base counts once for each adapter."""
        at, total, grid = self.arrays, 0.0, 1.0
        most = max((abs(share) for share in self.shares), default=1.0)
        least = min((abs(share) for share in self.shares), default=1.0)
        for spec, a, b in adapters:
            here = Arrays(at.w, at.bias, a, b, at.x, at.dy)
            alone = replace(self, r=spec.r, alpha=spec.alpha, rslora=spec.rslora)
            total += here.largest_sum(alone) * min(1.0, spec.scaling)
            grid = min(grid, spec.scaling * min(1.0, least))
        return total * max(1.0, most) / grid

    def oracle_at(self, nth: int, manifest: Manifest, *, factor: float = 1.0) -> Oracle:
        spec, a, b = self.adapters[nth]
        return self.oracle_of(a, b, manifest, factor=factor, spec=spec)

    def forward_of(self, manifest: Manifest, active: Mapping[int, float], x: Array | None = None) -> Bounded:
        """y with these adapters, each times its factor; every sum may be rounded to the base's dtype."""
        x = self.arrays.x if x is None else x
        first = self.oracle_at(0, manifest)
        y = first.base_forward(x)
        for nth, factor in active.items():
            y = first.base.round(y + self.oracle_at(nth, manifest, factor=factor).delta(x))
        return y

    def merged_of(self, manifest: Manifest, active: Sequence[int]) -> Bounded:
        """W' with these adapters; every delta, and every sum, may be rounded to the weight's dtype."""
        oracles = [self.oracle_at(nth, manifest) for nth in active]
        w = Bounded(self.arrays.w.astype(np.float64), np.zeros(self.arrays.w.shape))
        for oracle in oracles:
            w = oracle.base.round(w + oracle.delta_weight(narrow=True))
        return w

    def combined(self, manifest: Manifest) -> Oracle:
        """One adapter that is the weighted sum of all; each factor may be rounded twice, for the weight and for s."""
        parts = list(zip(self.adapters, self.shares, strict=True))
        a = np.concatenate([a.astype(np.float64) for (_, a, _), _ in parts], axis=0)
        b = np.concatenate([b.astype(np.float64) * spec.scaling * share for (spec, _, b), share in parts], axis=1)
        r = a.shape[0]
        oracle = self.oracle_of(a, b, manifest, spec=LoraSpec(r=r, alpha=float(r)))
        for factor in ("a", "b"):
            setattr(oracle, factor, oracle.adapter.round(oracle.adapter.round(getattr(oracle, factor))))
        return oracle


@dataclass(frozen=True)
class DrawSeveral(Draw):
    """others: how many further adapters. steps: the operations, which are drawn in any order."""

    others: tuple[int, int] = (1, 1)
    steps: tuple[str, ...] = ()

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return _several(super().__call__(subject), self, subject.has(Feature.RSLORA))

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return Several.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> Case:
        return self.rebuild({"ranks": [3], "alphas": [6.0], "shares": [1.0, 1.0], **given, "dtype": subject.dtype})


@st.composite
def _several(draw: DrawFn, plain: SearchStrategy[Case], ask: DrawSeveral, rslora: bool) -> Several:  # noqa: FBT001
    case = draw(plain)
    count = draw(st.integers(*ask.others))
    rsloras = tuple(rslora and ask.rslora and draw(st.booleans()) for _ in range(count))
    ranks = tuple(draw(st.sampled_from((4, 1, 9) if root else (3, 1, 2, 5))) for root in rsloras)
    exponents = tuple(draw(st.sampled_from((1, -1, 2, 0, -2))) for _ in range(count))
    each = zip(ranks, exponents, rsloras, strict=True)
    alphas = tuple(exact_alpha(r, e, rslora=root) for r, e, root in each)
    if case.tier == "bounded":
        alphas = tuple(draw(st.sampled_from(ALPHAS)) for _ in range(count))
    steps = st.permutations(ask.steps).map(tuple) if ask.steps else st.just(())
    fields: dict[str, Any] = {
        "ranks": ranks,
        "alphas": alphas,
        "rsloras": rsloras,
        "shares": tuple(draw(st.sampled_from(SHARES)) for _ in range(count + 1)),
        "swapped": draw(st.booleans()),
        "operations": draw(steps),
    }
    known = {name: getattr(case, name) for name in Case.__dataclass_fields__}
    several = Several(**known, **fields)
    try:
        _ = several.adapters
    except InexactCaseError:
        return replace(several, tier="bounded")
    return several
