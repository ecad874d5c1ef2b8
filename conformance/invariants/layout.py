"""Layout: any strides, any shape, any kind of base layer."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Facet, Feature
from conformance.invariant import invariant
from conformance.invariants.gradients import judge_gradients
from conformance.strategies import Draw
from conformance.subject import Subject

shape_general = invariant("shape-general", family="layout", after=("forward-oracle", "grad-oracle"))
layout_agnostic = invariant("layout-agnostic", family="layout", after=("forward-oracle", "grad-oracle"))
base_geometry_parity = invariant("base-geometry-parity", family="layout", after=("forward-oracle", "grad-oracle"))
fused_slice_map = invariant("fused-slice-map", family="layout", after=("forward-oracle", "grad-oracle"))
expert_row_map = invariant("expert-row-map", family="layout", after=("forward-oracle", "grad-oracle"))


class DrawExtremes(Draw):
    """Shapes at the edges, as often as ordinary ones: of axes, and of the tiles that kernels work in, up to 256."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        edge = st.sampled_from((1, 2, 3, 17, 67, 130, 259))
        extreme = st.builds(
            Case,
            in_features=edge,
            out_features=edge,
            r=st.sampled_from((1, 3, 7, 20, 33, 130)),
            alpha=st.sampled_from((2.0, 5.0)),
            lead=st.sampled_from(((0,), (), (1,), (3, 0, 2), (2, 1, 1, 3), (131,), (2, 65), (263,))),
            tier=st.just("bounded"),
            dtype=st.just(subject.dtype),
            bias=st.booleans() if subject.has(Feature.BIAS) else st.just(value=False),
            seed=st.integers(0, 2**32 - 1),
        )
        return extreme | super().__call__(subject)


@shape_general.on(Facet.OPERATOR, Facet.LAYER, cost=1 / 3, draws=DrawExtremes(kinds=("linear",)))
def _(subject: Subject, case: Case) -> None:
    """Any leading dimensions, no rows at all, in != out, rank 1, a rank above both or no multiple of a tile."""
    _judge_all(subject, case)


@layout_agnostic.on(Facet.OPERATOR, Facet.LAYER, draws=Draw(kinds=("linear",), rows=True, layouts=True))
def _(subject: Subject, case: Case) -> None:
    """Strided, transposed, sliced and broadcast x and dy give what contiguous copies of them give."""
    _judge_all(subject, case)


@base_geometry_parity.on(
    Facet.OPERATOR,
    Facet.LAYER,
    cost=1 / 3,
    draws=Draw(kinds=("transposed", "embedding", "conv", "embedding", "conv"), geometry=True),
)
def _(subject: Subject, case: Case) -> None:
    """The adapter honours every hyper-parameter of its base layer.

    Weights stored (in, out); embeddings with a padding index; convolutions with any kernel, stride, padding, padding
    mode, dilation and number of groups.
    """
    _judge_all(subject, case)


@fused_slice_map.on(Facet.OPERATOR, Facet.LAYER, needs={Feature.FUSED}, draws=Draw(kinds=("fused",)))
def _(subject: Subject, case: Case) -> None:
    """In a weight that stacks several projections each part's delta lands in that part's rows, and only there.

    For every non-empty subset of adapted parts, and for parts of different sizes (grouped-query attention).
    """
    _judge_all(subject, case)


@expert_row_map.on(Facet.OPERATOR, Facet.LAYER, needs={Feature.EXPERTS}, draws=Draw(kinds=("experts",)))
def _(subject: Subject, case: Case) -> None:
    """In a stack of experts each row of x meets the A and B of the expert that it is sent to, and they learn from it.

    y_i = x_i W_eᵀ + s (x_i A_eᵀ) B_eᵀ; W (E, out, in), A (E, r, in), B (E, out, r), e the expert of row i. The factors
    of an expert without rows have zero gradients, not missing ones.
    """
    _judge_all(subject, case)


def _judge_all(subject: Subject, case: Case) -> None:
    grads = subject.vjp(case)
    subject.judge_output(case, grads.y, case.oracle(subject.manifest).forward(case.arrays.x))
    judge_gradients(subject, case, grads)
