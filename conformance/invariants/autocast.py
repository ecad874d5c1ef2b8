"""Autocast: a mixed-precision region changes the precision of a layer, never its function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case, InexactCaseError
from conformance.contract import Array, Facet, Feature, Grads, Handle, How, Manifest, ModelHandle, dtype_of
from conformance.invariant import invariant
from conformance.invariants.gradients import judge_gradients
from conformance.invariants.merge import restored
from conformance.model_cases import DrawModel, ModelCase
from conformance.sites import backward, outputs, site_oracle, watching
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must
from lora_ref.oracle import Gradients, Oracle
from lora_ref.rounding import UNIT_ROUNDOFF, Bounded

autocast_parity = invariant(
    "autocast-parity", family="ways", after=("grad-oracle", "dtype-preserved", "merge-delta-oracle")
)

_REGION = "bfloat16"
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class AutocastCase(Case):
    """A case that is exact in bfloat16 too, where it says exact."""

    @property
    def narrowest(self) -> str:
        return _REGION


@dataclass(frozen=True)
class _Call:
    """One call in the region, with an x of any dtype."""

    case: Case
    x_dtype: str

    @property
    def x(self) -> Array:
        own = self.case.arrays.x
        return own.astype(dtype_of(self.x_dtype)) if self.case.geometry.differentiable else own

    @property
    def y_dtype(self) -> str:
        """The bare base layer's under the same autocast: products are formed in bfloat16, a lookup is left alone."""
        return _REGION if self.case.geometry.differentiable else self.case.dtype

    @property
    def dy(self) -> Array:
        return self.case.arrays.dy.astype(dtype_of(self.y_dtype))

    def expected(self, manifest: Manifest) -> tuple[Bounded, Gradients]:
        """y and the gradients, with the bounds of arithmetic in bfloat16 on x, W, A and B that are rounded to it first.

        Each of the (at most three) factors of a term is off by 1 + u, and x by another 1 + u' on its way through A's
        dtype. So a term is off by less than f = (1+u)³(1+u') - 1 of itself, and so is what rounding adds to it; the sum
        of absolute values of all terms is what the closed form gives for absolute values of the arrays.
        """
        at, geometry = self.case.arrays, self.case.geometry
        layer = (geometry, self.case.spec)
        known = Oracle(
            *layer, at.w, at.bias, at.a, at.b,
            base_dtype=self.y_dtype, adapter_dtype=_REGION, numerics=manifest.numerics,
        )  # fmt: skip
        w, a, b = (np.abs(_wide(array)) for array in (at.w, at.a, at.b))
        size = Oracle(*layer, w, None if at.bias is None else np.abs(_wide(at.bias)), a, b)
        x, dy = _wide(self.x), _wide(self.dy)
        abs_x = np.abs(x) if geometry.differentiable else x
        u, stored = UNIT_ROUNDOFF[_REGION], UNIT_ROUNDOFF[self.case.adapter]
        off = (1 + u) ** 3 * (1 + max(stored, UNIT_ROUNDOFF[self.x_dtype])) - 1
        got, sizes = known.gradients(x, dy), size.gradients(abs_x, np.abs(dy))
        dx = None
        if got.x is not None and sizes.x is not None:
            dx = _wider(got.x, sizes.x.value, off, UNIT_ROUNDOFF[self.x_dtype])
        grads = Gradients(dx, _wider(got.a, sizes.a.value, off, stored), _wider(got.b, sizes.b.value, off, stored))
        return _wider(known.forward(x), size.forward(abs_x).value, off, 0.0), grads


def _wider(known: Bounded, size: Array, off: float, stored: float) -> Bounded:
    """``off`` of the terms' sizes on top, and one rounding to the dtype in which a gradient is stored."""
    bound = known.bound * (1 + off) + off * size
    return Bounded(known.value, bound + stored * (np.abs(known.value) + bound))


def _wide(array: Array) -> Array:
    return array.astype(np.float64)


@dataclass(frozen=True)
class DrawAutocast(Draw):
    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return super().__call__(subject).map(_exact_in_region).filter(_judgeable)

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return AutocastCase.from_fields(given)


def _exact_in_region(case: Case) -> AutocastCase:
    """Exact where a lattice is exact in bfloat16 too."""
    cast = AutocastCase(**{f.name: getattr(case, f.name) for f in fields(Case)})
    try:
        _ = cast.arrays
    except InexactCaseError:
        return replace(cast, tier="bounded")
    return cast


def _judgeable(case: AutocastCase) -> bool:
    """A convolution in bfloat16 may store a sum for each tap of its kernel, so that only exact ones can be judged."""
    return case.kind != "conv" or case.tier == "exact"


@autocast_parity.on(
    Facet.LAYER,
    needs={Feature.AUTOCAST},
    draws=DrawAutocast(
        kinds=("linear", "embedding", "transposed", "linear", "embedding", "conv"),  # a lookup has a rule of its own
        tiers=("exact", "bounded", "bounded"),  # integers are the same in bfloat16: they do not show what was kept
        rows=True,
        small=True,
    ),
)
def _(subject: Subject, case: AutocastCase) -> None:
    """Under autocast the output has the dtype that the bare base layer's has there, for any dtype of W, A, B and x.

    Each gradient has the dtype of its tensor, and all values are the closed form's within the error of bfloat16. What
    ran before does not matter: a call inside the region, between two outside of it, changes neither of them. A merge is
    no part of the region's arithmetic: made inside, W' is what it is outside, and W comes back when it is unmerged.
    """
    handle, spec, exact = subject.attach(case), case.spec, case.tier == "exact"
    _judge_outside(subject, case, handle, "before any autocast")
    own, *others = (case.dtype, *(dtype for dtype in _DTYPES if dtype != case.dtype))
    for x_dtype in (own, *others, own) if case.geometry.differentiable else (own, own):
        call, when = _Call(case, x_dtype), f"under autocast, with an x of {x_dtype}"
        expected, gradients = call.expected(subject.manifest)
        grads = handle.vjp(call.x, call.dy, how=How.AUTOCAST)
        _must_have_dtypes(case, grads, call.y_dtype, x_dtype, when)
        subject.judge(f"y {when}", grads.y, expected, exact=exact, spec=spec)
        subject.judge(f"dA {when}", grads.da, gradients.a, exact=exact, spec=spec)
        subject.judge(f"dB {when}", grads.db, gradients.b, exact=exact, spec=spec)
        if gradients.x is not None:
            subject.judge(f"dx {when}", grads.dx, gradients.x, exact=exact, spec=spec)
    _judge_outside(subject, case, handle, "after autocast")


def _judge_outside(subject: Subject, case: AutocastCase, handle: Handle, when: str) -> None:
    grads = handle.vjp(case.arrays.x, case.arrays.dy)
    _must_have_dtypes(case, grads, case.dtype, case.dtype, when)
    expected = case.oracle(subject.manifest).forward(case.arrays.x)
    subject.judge_output(case, grads.y, expected, quantity=f"y {when}")
    judge_gradients(subject, case, grads)


def _must_have_dtypes(case: AutocastCase, grads: Grads, y: str, x: str, when: str) -> None:
    wanted = {"y": y, "dx": x, "da": case.adapter, "db": case.adapter}
    if not case.geometry.differentiable:
        del wanted["dx"]
    for name, dtype in wanted.items():
        array = getattr(grads, name)
        got = "nothing" if array is None else array.dtype.name
        must(got == dtype, f"dtype of {name} {when}", dtype, got)


@autocast_parity.on(
    Facet.MODEL,
    needs={Feature.AUTOCAST},
    cost=10,
    draws=DrawModel(operations=("merge", "forward")),
    dtypes=("float32",),
)
def _(subject: Subject, case: ModelCase) -> None:
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    if case.operation == "merge" and subject.has(Feature.MERGE):
        _judge_merge_inside(subject, case, handle)
        return
    inputs = case.loaded.inputs(case.seed)
    with _region(), torch.no_grad():
        bare = outputs(case.loaded.fresh(), inputs)
    with _region(), watching(handle) as seen:
        adapted = outputs(handle.module.eval(), inputs)
    for nth, (got, wanted) in enumerate(zip(adapted, bare, strict=True)):
        must(got.dtype == wanted.dtype, f"dtype of output {nth} under autocast", wanted.dtype, got.dtype)
    for path, call in seen.items():
        must(call.y.dtype.name == _REGION, f"dtype of y of {path} under autocast", _REGION, call.y.dtype.name)
    backward(case, adapted)
    for path in seen:
        for name, factor in zip("AB", handle.factors(path), strict=True):
            must(factor.grad is not None, f"gradient of {name} of {path} under autocast", "one", "none")


def _judge_merge_inside(subject: Subject, case: ModelCase, handle: ModelHandle) -> None:
    with _region():
        handle.merge()
    for path in handle.sites():
        oracle = site_oracle(case, handle, path, subject.manifest)
        what, got = f"W' of {path} after a merge under autocast", to_numpy(handle.weight(path))
        delta = oracle.delta_weight().value
        subject.judge(what, got, oracle.merged_weight(), exact=False, delta=delta, spec=case.spec.at(path))
    if subject.has(Feature.UNMERGE):
        handle.unmerge()
        for path in handle.sites():
            expected = restored(site_oracle(case, handle, path, subject.manifest))
            what = f"W of {path}, merged under autocast and unmerged outside of it"
            subject.judge(what, to_numpy(handle.weight(path)), expected, exact=False)


def _region() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)
