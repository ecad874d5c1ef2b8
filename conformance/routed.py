"""Cases of the batch facet: rows of one batch that are served by different adapters, or by none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conformance.cases import InexactCaseError, exact_alpha
from conformance.contract import Array, Manifest
from conformance.several import Several
from conformance.strategies import ALPHAS, Draw
from conformance.subject import Subject
from lora_ref.rounding import Bounded

NONE = -1  # a row without an adapter
_COUNTS = (3, 1, 2, 0, 5, 17, 33, 40)  # rows, on both sides of what a kernel may take for its blocks


@dataclass(frozen=True)
class Routed(Several):
    """``index`` names the adapter of each row. All adapters share the spec's alpha; the rank is each one's own."""

    index: tuple[int, ...] = ()

    def expected(self, manifest: Manifest, index: Array, x: Array) -> Bounded:
        """Row by row what a run with that row's adapter alone would give."""
        oracle = self.oracle_at(0, manifest)
        y = oracle.base_forward(x)
        value, bound = y.value.copy(), y.bound.copy()
        for nth in range(len(self.adapters)):
            rows = index == nth
            solo = self.oracle_at(nth, manifest).forward(x)
            value[rows], bound[rows] = solo.value[rows], solo.bound[rows]
        return Bounded(value, bound)


@dataclass(frozen=True)
class DrawRouted(Draw):
    """Linear layers with one to four adapters: every row another one, all the same, some none, or all none."""

    def __call__(self, subject: Subject) -> SearchStrategy[Routed]:
        return _routed(super().__call__(subject))

    def rebuild(self, given: Mapping[str, Any]) -> Routed:
        case = Routed.from_fields(given)
        assert isinstance(case, Routed)
        return case

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> Routed:
        return self.rebuild({"lead": [len(given.get("index", ()))], **given, "dtype": subject.dtype})


@st.composite
def _routed(draw: DrawFn, plain: SearchStrategy[Any]) -> Routed:
    case = draw(plain)
    known = {name: getattr(case, name) for name in case.__dataclass_fields__}
    count = draw(st.integers(0, 3))
    ranks = tuple(draw(st.sampled_from((9, 1) if case.rslora else (1, 4, 2, 8))) for _ in range(count))
    alpha = draw(st.sampled_from(ALPHAS))
    if case.tier == "exact":  # one alpha for all ranks: powers of two, or squares of them, keep each scaling one
        known["r"] = draw(st.sampled_from((4, 1))) if case.rslora else draw(st.sampled_from((2, 4, 1)))
        ranks = tuple(draw(st.sampled_from((1, 4, 16) if case.rslora else (1, 4, 2, 8))) for _ in range(count))
        alpha = exact_alpha(4, draw(st.sampled_from((1, -1, 0))), rslora=case.rslora)
    rows = draw(st.sampled_from(_COUNTS))
    each = st.integers(NONE, count)
    same = each.map(lambda nth: [nth] * rows)
    index = draw(st.lists(each, min_size=rows, max_size=rows) | same)
    fields = {"lead": (rows,), "alpha": alpha, "ranks": ranks, "alphas": (alpha,) * count, "index": tuple(index)}
    routed = Routed(**{**known, **fields})
    try:
        _ = routed.adapters
    except InexactCaseError:
        return Routed(**{**known, **fields, "tier": "bounded"})
    return routed


def as_index(index: tuple[int, ...]) -> Array:
    return np.array(index, dtype=np.int64).reshape(-1)
