"""What is merged, and what says so, stay the same thing whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Facet, Feature, Handle
from conformance.invariant import invariant
from conformance.invariants.merge import one_cycle, refuses
from conformance.strategies import Draw
from conformance.subject import Subject
from lora_ref.rounding import Bounded

merge_state_honest = invariant(
    "merge-state-honest", family="merge", after=("unmerge-restores-base", "merge-equivalence")
)

Operation = Literal["disable", "rewrite", "rescale", "switch", "join", "delete"]
_NEEDS: dict[Operation, Feature] = {
    "disable": Feature.DISABLE,
    "rewrite": Feature.UNMERGE,
    "rescale": Feature.RUNTIME_SCALE,
    "switch": Feature.MULTI_ADAPTER,
    "join": Feature.MULTI_ADAPTER,
    "delete": Feature.DELETE,
}


@dataclass(frozen=True)
class WhileMerged(Case):
    """A case, and what is done to its layer while the adapter is merged."""

    operation: Operation = "disable"


class DrawWhileMerged(Draw):
    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        able = [operation for operation, feature in _NEEDS.items() if subject.has(feature)]
        plain = super().__call__(subject)
        return st.builds(_with, plain, st.sampled_from(able))

    def rebuild(self, given: Any) -> Case:
        return WhileMerged.from_fields(given)


def _with(case: Case, operation: Operation) -> Case:
    return WhileMerged(**{name: getattr(case, name) for name in case.__dataclass_fields__}, operation=operation)


@merge_state_honest.on(
    Facet.LAYER,
    needs={Feature.MERGE, Feature.UNMERGE},
    cost=1 / 2,
    draws=DrawWhileMerged(kinds=("linear", "transposed", "embedding"), tiers=("exact",), rows=True, headroom=1),
)
def _(subject: Subject, case: Case) -> None:
    """What is done to a merged layer is either refused, and changes nothing, or has its full effect.

    Operations: disable; give A and B new values; rescale; activate another adapter instead, or as well; delete the
    merged one. Afterwards, unmerging gives the base weight back.
    """
    assert isinstance(case, WhileMerged)
    handle, x = subject.attach(case), case.arrays.x
    other = case.sibling(1)
    if subject.has(Feature.MULTI_ADAPTER):
        handle.add("second", other.spec, other.arrays.a, other.arrays.b)
    handle.forward(x)
    handle.merge()
    operations: dict[Operation, tuple[Callable[..., None], tuple[object, ...]]] = {
        "disable": (handle.enable, (False,)),
        "rewrite": (handle.write, (other.arrays.a, other.arrays.b)),
        "rescale": (handle.set_scale, (2.0,)),
        "switch": (handle.activate, ("second",)),
        "join": (handle.activate, ("default", "second")),
        "delete": (handle.delete, ("default",)),
    }
    request, arguments = operations[case.operation]
    refused = refuses(request, *arguments)
    after = f"after {case.operation} while merged{' was refused' if refused else ''}"
    expected = _expected(subject, case, None if refused else case.operation)
    answer = _answer(handle, case)
    if answer is not None:  # a forward that refuses to give a stale answer is honest
        subject.judge(f"y {after}", answer, expected, exact=True, spec=case.spec)
    refuses(handle.unmerge)  # refused where the operation itself has unmerged
    subject.judge(f"W {after}, then unmerged", handle.effective_weight(), one_cycle(subject, case), exact=True)


def _answer(handle: Handle, case: Case) -> Any:
    try:
        return handle.forward(case.arrays.x)
    except Exception:  # noqa: BLE001 - any exception is a refusal
        return None


def _expected(subject: Subject, case: WhileMerged, done: Operation | None) -> Bounded:
    """The output that the state after the operation must give."""
    plain, x = case.oracle(subject.manifest), case.arrays.x
    other = case.sibling(1)
    second = case.oracle_of(other.arrays.a, other.arrays.b, subject.manifest)
    if done in {"disable", "delete"}:
        return plain.base_forward(x)
    if done in {"rewrite", "switch"}:
        return second.forward(x)
    if done == "join":
        return plain.forward(x) + second.delta(x)
    if done == "rescale":
        return case.oracle(subject.manifest, factor=2.0).forward(x)
    return plain.forward(x)
