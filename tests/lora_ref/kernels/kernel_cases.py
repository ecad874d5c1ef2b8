"""Cases of the exact tier whose sizes lie on both sides of the kernels' blocks, and dtypes that the kernels serve."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from conformance.cases import Case, InexactCaseError, exact_alpha
from conformance.contract import Manifest
from conformance.routed import Routed
from lora_ref.oracle import Numerics

MANIFEST = Manifest("kernels", "0", numerics=Numerics(scale="hidden"))
SIZES = (3, 1, 16, 17, 33, 70)
RANKS = (2, 1, 3, 8, 16, 17, 33)
EXAMPLES = settings(max_examples=6, deadline=None, database=None, derandomize=True)

every_dtype = pytest.mark.parametrize(
    ("dtype", "adapter"),
    [
        ("float32", ""),
        ("float16", ""),
        ("bfloat16", ""),  # in the interpreter multiplied as float32
        ("bfloat16", "float32"),
        ("float16", "float32"),
    ],
)


def _is_exact(case: Case) -> bool:
    try:
        _ = case.adapters if isinstance(case, Routed) else case.arrays
    except InexactCaseError:
        return False
    return True


def exact_cases(dtype: str, adapter: str) -> st.SearchStrategy[Case]:
    def case(in_: int, out: int, r: int, rows: int, scaling: int, bias: bool, seed: int) -> Case:  # noqa: FBT001
        alpha = exact_alpha(r, scaling, rslora=False)
        return Case(in_, out, r, alpha, (rows,), dtype=dtype, adapter_dtype=adapter, bias=bias, seed=seed)

    size, seed = st.sampled_from(SIZES), st.integers(0, 2**32 - 1)
    ranks, scalings = st.sampled_from(RANKS), st.sampled_from((1, -1, 0))
    return st.builds(case, size, size, ranks, size, scalings, st.booleans(), seed).filter(_is_exact)


def routed_cases(dtype: str, adapter: str) -> st.SearchStrategy[Routed]:
    """One to four adapters, in any order among the rows, or with none; each has a rank and a scaling of its own."""

    @st.composite
    def routed(draw: st.DrawFn) -> Routed:
        ranks = [draw(st.sampled_from(RANKS)) for _ in range(draw(st.integers(1, 4)))]
        alphas = [exact_alpha(r, draw(st.sampled_from((1, -1, 0))), rslora=False) for r in ranks]
        rows = draw(st.sampled_from((1, 5, 33, 75)))
        index = draw(st.lists(st.integers(-1, len(ranks) - 1), min_size=rows, max_size=rows))
        return Routed(
            in_features=draw(st.sampled_from(SIZES)),
            out_features=draw(st.sampled_from(SIZES)),
            r=ranks[0],
            alpha=alphas[0],
            lead=(rows,),
            dtype=dtype,
            adapter_dtype=adapter,
            bias=draw(st.booleans()),
            seed=draw(st.integers(0, 2**32 - 1)),
            ranks=tuple(ranks[1:]),
            alphas=tuple(alphas[1:]),
            index=tuple(index),
        )

    return routed().filter(_is_exact)
