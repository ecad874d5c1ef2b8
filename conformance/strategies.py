"""What Hypothesis draws: shapes and flags of cases that a backend claims to serve, in one dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from conformance.cases import Case, InexactCaseError, Kind, Layout, Tier, exact_alpha
from conformance.contract import Feature, Manifest
from conformance.subject import Subject

# Sizes that share no factor, so that a transposed or reshaped array cannot fit by accident; 16 is a kernel's tile.
_FEATURES = (3, 2, 5, 7, 11, 13, 1, 16)
_LONG = (3, 5, 17, 31, 64, 97)  # long sums, where accumulation dominates; only the bounded tier can afford them
ALPHAS = (3.0, 2.5, 5.0, 7.0, 2.0, 7.3, 12.0, 1.0, 0.5, 4.0, 1.5, 9.0, 16.0, 3.3)  # from 3, where few wrong laws agree
_SHAPES = ("any", "any", "any", "square", "r = out", "r = in")  # where two sizes agree, a transposition fits
_LEADS: tuple[tuple[int, ...], ...] = ((2,), (), (1,), (3,), (2, 3), (0,), (2, 0), (1, 2, 3), (5, 1))
_LAYOUTS: tuple[Layout, ...] = ("contiguous", "transposed", "strided", "offset", "expanded")
_KIND_NEEDS: dict[Kind, Feature | None] = {
    "linear": None,
    "transposed": Feature.TRANSPOSED,
    "embedding": Feature.EMBEDDING,
    "conv": Feature.CONV,
    "fused": Feature.FUSED,
    "experts": Feature.EXPERTS,
}


@dataclass(frozen=True)
class Draw:
    """What an invariant asks of its cases; the backend's manifest decides the rest."""

    kinds: tuple[Kind, ...] = ("linear", "transposed", "embedding", "conv", "fused", "experts")
    tiers: tuple[Tier, ...] = ("exact", "bounded")
    layouts: bool = False  # strided and broadcast x and dy
    rows: bool = False  # at least one row, so that there is something to see
    rank: int = 1  # smallest r
    dropout: tuple[float, ...] = (0.0,)
    rslora: bool = True
    mixed: bool = True  # also fp32 adapters over a narrower base
    geometry: bool = False  # every hyper-parameter of the base layer, not only the usual values
    headroom: int = 0  # see Case
    dora: bool = False  # with a magnitude for each output, and sometimes an output whose row of W and B is zero
    quantised: bool = False  # a base in 4 or 8 bits
    small: bool = False  # short sums only, where a check repeats itself
    long: bool = False  # long sums only, where their order is to show

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return _cases(self, subject.manifest, subject.dtype)

    def rebuild(self, given: Mapping[str, Any]) -> Case:
        return Case.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> Case:
        return self.rebuild({**given, "dtype": subject.dtype})

    def lacking(self, subject: Subject) -> str:
        return "" if self.kinds_of(subject.manifest) else f"declares none of {', '.join(self.kinds)}"

    def kinds_of(self, manifest: Manifest) -> list[Kind]:
        return [k for k in self.kinds if _KIND_NEEDS[k] is None or _KIND_NEEDS[k] in manifest.features]


def exercised_by(case: Case) -> set[Feature]:
    """The features that a case of this shape cannot do without."""
    needs: dict[Feature, bool] = {
        Feature.BIAS: case.bias,
        Feature.RSLORA: case.rslora,
        Feature.DROPOUT: case.dropout > 0,
        Feature.MIXED_DTYPE: case.adapter != case.dtype,
        Feature.GROUPED_CONV: case.groups > 1,
        Feature.UNEQUAL_PARTS: len(set(case.parts)) > 1,
    }
    kind = _KIND_NEEDS[case.kind]
    return {feature for feature, needed in needs.items() if needed} | ({kind} if kind else set())


@st.composite
def _cases(draw: DrawFn, ask: Draw, manifest: Manifest, dtype: str) -> Case:
    """A drawn case is exact where it says so: one for which no lattice fits is replaced by a bounded one."""
    has = manifest.features.__contains__
    kind = draw(st.sampled_from(ask.kinds_of(manifest)))
    tier = "bounded" if ask.dora or ask.quantised else draw(st.sampled_from(ask.tiers))
    mixed = ask.mixed and has(Feature.MIXED_DTYPE) and dtype != "float32" and draw(st.booleans())
    features = st.sampled_from(_FEATURES if tier == "exact" or kind != "linear" or ask.small else _FEATURES + _LONG)
    features = st.sampled_from(_LONG[::-1]) if ask.long else features
    rank = _rank(draw, ask, manifest, tier)
    r, shape = rank["r"], draw(st.sampled_from(_SHAPES))
    fields: dict[str, object] = {
        "kind": kind,
        "tier": tier,
        "dtype": dtype,
        "adapter_dtype": "float32" if mixed else "",
        "in_features": (n := r if shape == "r = in" else draw(features)),
        "out_features": {"square": n, "r = out": r}.get(shape) or draw(features),
        "lead": draw(st.sampled_from(_leads(ask))),
        "bias": kind not in {"embedding", "experts"} and has(Feature.BIAS) and draw(st.booleans()),
        "base_zero": draw(st.integers(0, 2)) == 2 and not ask.dora,
        "dropout": draw(st.sampled_from(ask.dropout)),
        "headroom": ask.headroom if tier == "exact" else 0,
        "bits": draw(st.sampled_from((4, 8))) if ask.quantised else 0,
        "dora": ask.dora,
        "zero_row": ask.dora and draw(st.integers(0, 3)) == 3,
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    fields |= rank
    fields |= _OF_KIND[kind](draw, manifest, fields)
    if not ask.geometry:
        fields |= _usual(kind, fields)
    if ask.layouts:
        fields["x_layout"] = draw(st.sampled_from(_LAYOUTS))
        fields["dy_layout"] = draw(st.sampled_from(_LAYOUTS))
    case = Case(**fields)  # type: ignore[arg-type]
    try:
        _ = case.arrays
    except InexactCaseError:
        fields["tier"] = "bounded"
        if "bounded" not in ask.tiers:
            raise
        return Case(**fields)  # type: ignore[arg-type]
    return case


def _leads(ask: Draw) -> tuple[tuple[int, ...], ...]:
    if ask.layouts:
        return ((2, 3), (3,), (2, 3, 2), (2,))
    return tuple(lead for lead in _LEADS if 0 not in lead) if ask.rows else _LEADS


def _rank(draw: DrawFn, ask: Draw, manifest: Manifest, tier: Tier) -> dict[str, Any]:
    """r is often above 1 and sometimes above both features; alpha is never r."""
    rslora = ask.rslora and Feature.RSLORA in manifest.features and draw(st.integers(0, 2)) == 2
    if rslora:
        r = draw(st.sampled_from([r for r in (4, 9) if r >= ask.rank] if tier == "exact" else [2, 3, 5, 8]))
    else:
        r = draw(st.sampled_from([r for r in (2, 1, 3, 4, 5, 8) if r >= ask.rank]))
    if tier == "exact":
        alpha = exact_alpha(r, draw(st.sampled_from((1, -1, 2, -2))), rslora=rslora)
        return {"r": r, "rslora": rslora, "alpha": 2 * alpha if alpha == r else alpha}
    return {"r": r, "rslora": rslora, "alpha": draw(st.sampled_from([alpha for alpha in ALPHAS if alpha != r]))}


def _plain(_draw: DrawFn, _manifest: Manifest, _fields: dict[str, object]) -> dict[str, object]:
    return {}


def _embedding(draw: DrawFn, _manifest: Manifest, _fields: dict[str, object]) -> dict[str, object]:
    """Few ids, so that a batch repeats some and meets the padding."""
    n = draw(st.sampled_from((3, 2, 5, 11)))
    return {"in_features": n, "padding_idx": draw(st.sampled_from((None, 0, n - 1))), "dropout": 0.0}


def _fused(draw: DrawFn, manifest: Manifest, _fields: dict[str, object]) -> dict[str, object]:
    n = draw(st.integers(2, 3))
    equal = Feature.UNEQUAL_PARTS not in manifest.features
    part = st.sampled_from((2, 1, 3, 5))
    parts = (draw(part),) * n if equal else tuple(draw(part) for _ in range(n))
    subsets = st.lists(st.booleans(), min_size=n, max_size=n).filter(any).map(tuple)
    enabled = draw(subsets | st.just((True,) * n))  # all of them are one subset among many, and the usual one
    return {"parts": parts, "enabled": enabled, "out_features": sum(parts)}


def _experts(draw: DrawFn, _manifest: Manifest, fields: dict[str, object]) -> dict[str, object]:
    """About as many experts as rows, so that some serve several rows and some none."""
    experts, lead = draw(st.sampled_from((3, 2, 4, 1))), fields["lead"]
    assert isinstance(lead, tuple)
    rows = math.prod(lead)
    return {"experts": experts, "index": tuple(draw(st.integers(0, experts - 1)) for _ in range(rows))}


def _conv(draw: DrawFn, manifest: Manifest, fields: dict[str, object]) -> dict[str, object]:
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 2, 3))) if Feature.GROUPED_CONV in manifest.features else 1
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    if draw(st.booleans()):
        kernel[:-1] = [1] * (dims - 1)  # the kernels for which libraries have shortcuts
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    padding = [draw(st.integers(0, 1)) for _ in range(dims)]
    # the smallest space that holds the dilated kernel and can be padded by reflection, and sometimes one more
    size = [max(1 + (k - 1) * d, p + 1) + draw(st.integers(0, 2 if dims < 3 else 1))
            for k, d, p in zip(kernel, dilation, padding, strict=True)]  # fmt: skip
    r = fields["r"]
    assert isinstance(r, int)
    block = manifest.grouped_factors == "block" and groups > 1
    return {
        "in_features": groups * draw(st.integers(1, 3)),
        "out_features": groups * draw(st.integers(1, 3)),
        "kernel": tuple(kernel),
        "dilation": tuple(dilation),
        "padding": tuple(padding),
        "size": tuple(size),
        "stride": tuple(draw(st.integers(1, 2)) for _ in range(dims)),
        "groups": groups if not block or r % groups == 0 else 1,
        "factors": "block" if block and r % groups == 0 else "flattened",
        "padding_mode": draw(st.sampled_from(("zeros", "reflect", "replicate", "circular"))),
        "lead": draw(st.sampled_from(((2,), (1,)))),
    }


def _usual(kind: Kind, fields: dict[str, object]) -> dict[str, object]:
    """What most layers have; base-geometry-parity asks for the rest, so that a lapse there does not show everywhere."""
    if kind == "embedding":
        return {"padding_idx": None}
    if kind != "conv":
        return {}
    kernel = fields["kernel"]
    assert isinstance(kernel, tuple)
    ones = (1,) * len(kernel)
    usual = {"dilation": ones, "padding": (0,) * len(kernel), "padding_mode": "zeros"}
    return {"stride": ones, "groups": 1, "factors": "flattened", **usual}


_OfKind = Callable[[DrawFn, Manifest, dict[str, object]], dict[str, object]]
_OF_KIND: dict[Kind, _OfKind] = {
    "linear": _plain,
    "transposed": _plain,
    "embedding": _embedding,
    "conv": _conv,
    "fused": _fused,
    "experts": _experts,
}
