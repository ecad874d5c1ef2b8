"""Routing: in a mixed batch each row is served by its own adapter."""

from __future__ import annotations

import numpy as np

from conformance.contract import Facet
from conformance.invariant import invariant
from conformance.invariants.merge import refuses
from conformance.routed import DrawRouted, Routed, as_index
from conformance.subject import Subject
from conformance.violation import must

row_routing = invariant("row-routing", family="adapters")


@row_routing.on(Facet.BATCH, draws=DrawRouted(kinds=("linear", "transposed"), small=True, headroom=1))
def _(subject: Subject, case: Routed) -> None:
    """Row i of a mixed batch is what a run of that row alone with its adapter gives; -1 is the base alone.

    With adapters of different ranks and so of different scalings; whatever the other rows are: all of one adapter, all
    different, none at all, no rows. The same for the rows in another order, and for some of them. An index that names
    no adapter is refused, never served by the base or by another one.
    """
    batch = subject.backend.batch
    assert batch is not None
    weights, adapters = case.weights(factors=False), [(a, b) for _, a, b in case.adapters]
    index, x, exact = as_index(case.index), case.arrays.x, case.tier == "exact"
    rng = np.random.default_rng(case.seed)
    order = rng.permutation(len(index))
    some = rng.random(len(index)) < 0.5
    for what, rows in (("y", slice(None)), ("y of the rows in another order", order), ("y of some of the rows", some)):
        y = batch.forward(case.spec, weights, adapters, x[rows], index[rows].tolist())
        subject.judge(what, y, case.expected(subject.manifest, index[rows], x[rows]), exact=exact)
        must(y.dtype.name == case.dtype, f"dtype of {what}", case.dtype, y.dtype.name)
    for stray in (len(adapters), -2):
        wrong = index.copy()
        if len(wrong):
            wrong[rng.integers(len(wrong))] = stray
            refused = refuses(batch.forward, case.spec, weights, adapters, x, wrong.tolist())
            must(refused, f"a row of adapter {stray}, of {len(adapters)}", "a refusal", "an output, silently")
