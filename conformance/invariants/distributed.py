"""Distributed training: two ranks give what one process gives on the data of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.contract import Array, Facet, Feature, Model
from conformance.data_parallel import Training, train
from conformance.invariant import invariant
from conformance.stack import NAMES, PARTS, STEPS
from conformance.subject import Subject
from conformance.two_processes import RANKS, RankError, on_two_ranks
from conformance.violation import must
from lora_ref.geometry import Linear
from lora_ref.oracle import Oracle
from lora_ref.rounding import Bounded

world_size_parity = invariant("world-size-parity", family="distributed", after=("grad-oracle",))

CASES = tuple(
    Training(r, scaling, targets, seed=seed, wrap=wrap)
    for seed, ((r, scaling, targets), wrap) in enumerate(
        product(((2, 2, NAMES), (3, 4, NAMES), (1, 4, NAMES), (2, 4, NAMES[:1])), ("ddp", "fsdp2"))
    )
)
_SILENCE = 40.0  # seconds for any one case, or for starting; on an idle machine all of it takes some five
assert RANKS == PARTS

Seen = Mapping[str, Array | None]


@dataclass(frozen=True)
class DrawTraining:
    """One of ``CASES``: all are run at once, as starting processes takes far longer than training in them."""

    def __call__(self, subject: Subject) -> SearchStrategy[Training]:  # noqa: ARG002 - they are the same for all
        return st.sampled_from(CASES)

    def rebuild(self, given: Mapping[str, Any]) -> Training:
        return Training.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> Training:
        return self.rebuild({**given, "dtype": subject.dtype})

    def lacking(self, subject: Subject) -> str:  # noqa: ARG002 - the models are the suite's own
        return ""


@world_size_parity.on(
    Facet.MODEL, needs={Feature.DISTRIBUTED}, draws=DrawTraining(), dtypes=("float32",), per_model=False, slow=True
)
def _(subject: Subject, case: Training) -> None:
    """Trained on two ranks, each with its own data, an adapter is bit for bit what one process makes of both batches.

    With DDP and with FSDP2, for two steps: every A and B gets the gradient that is the mean over the ranks, the same on
    both, and moves by it; the base does not move; the state gathered from the shards is the whole state. A merge gives
    the whole W + s·B·A on each rank, or is refused. With DDP only rank 0 is given A and B, and hands them on.
    """
    ranks = _outcome(subject, case)
    expected = case.expected
    for rank, seen in enumerate(ranks):
        missing = [path for path in case.sites if f"start a:{path}" not in seen]
        must(not missing, f"adapted modules on rank {rank}", ", ".join(case.sites), f"none at {', '.join(missing)}")
        for path, name in product(case.sites, "ab"):
            what, start = f"{name.upper()} of {path} on rank {rank} once wrapped", case.arrays[f"{name}:{path}"]
            subject.judge.same(what, seen[f"start {name}:{path}"], start)
    for rank, seen in enumerate(ranks):
        _judge_training(subject, case, rank, seen, expected)
        for name in ("w", "bias"):
            for path in (key.partition(":")[2] for key in case.arrays if key.startswith(f"{name}:")):
                what = f"base {path}.{'weight' if name == 'w' else 'bias'}"
                subject.judge.same(f"{what} on rank {rank}", seen.get(what), case.arrays[f"{name}:{path}"])
        for path in case.sites:
            if f"merged {path}" in seen:
                oracle = _trained_site(subject, case, path, expected)
                merged = oracle.merged_weight(narrow=True)
                delta = oracle.delta_weight().value
                what = f"W' of {path} on rank {rank}"
                subject.judge(what, seen[f"merged {path}"], merged, exact=False, delta=delta, spec=case.spec)


def _judge_training(subject: Subject, case: Training, rank: int, seen: Seen, expected: Mapping[str, Array]) -> None:
    for step in range(STEPS):
        rows = np.split(expected[f"y:{step}"], RANKS)[rank]
        _judge_exact(subject, f"y of step {step + 1} on rank {rank}", seen.get(f"y:{step}"), rows)
        for path, name in product(case.sites, "ab"):
            what, key = f"d{name.upper()} of {path} in step {step + 1} on rank {rank}", f"d{name}:{step}:{path}"
            _judge_exact(subject, what, seen.get(key), expected[key])
    for path, name in product(case.sites, "ab"):
        what, key = f"{name.upper()} of {path} after {STEPS} steps on rank {rank}", f"{name}:{path}"
        _judge_exact(subject, what, seen.get(key), expected[key])


def _judge_exact(subject: Subject, what: str, got: Array | None, expected: Array) -> None:
    subject.judge(what, got, Bounded(expected, np.zeros_like(expected)), exact=True)


def _trained_site(subject: Subject, case: Training, path: str, expected: Mapping[str, Array]) -> Oracle:
    w, a, b = case.arrays[f"w:{path}"], expected[f"a:{path}"], expected[f"b:{path}"]
    layer = (Linear(w.shape[1], w.shape[0]), case.spec, w, None, a, b)
    return Oracle(*layer, base_dtype="float32", adapter_dtype="float32", numerics=subject.manifest.numerics)


def _outcome(subject: Subject, case: Training) -> list[Seen]:
    cases = CASES if case in CASES else (case,)
    results = _launch(_Key(subject.model, cases, subject.has(Feature.MERGE)))
    if isinstance(results, RankError):
        raise results
    return [rank[cases.index(case)] for rank in results]


@dataclass(frozen=True, eq=False)
class _Key:
    """The same model object, not an equal one."""

    model: Model
    cases: tuple[Training, ...]
    merge: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.model is other.model and self.cases == other.cases

    def __hash__(self) -> int:
        return id(self.model)


@lru_cache(maxsize=1)
def _launch(key: _Key) -> list[list[Seen]] | RankError:
    """Kept, so that the cases of one trial share it; a failure too."""
    try:
        return on_two_ranks(train, key.model, list(key.cases), key.merge, silence=_SILENCE)
    except RankError as error:
        return error
