"""Targets: which modules are adapted, and with what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from conformance.branches import WIDTH, Branches, expected_paths
from conformance.contract import Facet, Feature, ModelHandle
from conformance.invariant import invariant
from conformance.model_cases import ModelCase
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must

target_exact = invariant("target-exact", family="target", after=("identity-at-init",))
pattern_effective = invariant("pattern-effective", family="target", after=("target-exact",))
hook_binding = invariant("hook-binding", family="target", after=("target-exact",))

_TARGETS = ("q_proj", "proj", "A", "1.q_proj", "layers.1.q_proj", "deep.proj", "out")


@dataclass(frozen=True)
class DrawTargets:
    """Targets in the model of awkward names."""

    operations: tuple[str, ...] = ("",)

    def __call__(self, subject: Subject) -> SearchStrategy[ModelCase]:
        some = st.lists(st.sampled_from(_TARGETS), min_size=1, max_size=3, unique=True).map(tuple)
        seeds, operations = st.integers(0, 2**32 - 1), st.sampled_from(self.operations)
        fixed = {"model": st.just("branches"), "alpha": st.just(3.0), "dtype": st.just(subject.dtype)}
        return st.builds(
            ModelCase, targets=some, r=st.sampled_from((2, 1, 4)), operation=operations, seed=seeds, **fixed
        )

    def rebuild(self, given: Mapping[str, Any]) -> ModelCase:
        return ModelCase.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> ModelCase:
        return self.rebuild({"model": "branches", "targets": ["q_proj"], **given, "dtype": subject.dtype})

    def lacking(self, subject: Subject) -> str:  # noqa: ARG002 - every backend can serve these
        return ""


@target_exact.on(Facet.MODEL, draws=DrawTargets(), cost=2, dtypes=("float32",), per_model=False)
def _(subject: Subject, case: ModelCase) -> None:
    """Exactly the modules are adapted whose dotted path is a target or ends in one: "proj" is not "q_proj".

    Seen from outside: with values in all that is trainable, exactly these modules answer differently.
    """
    bare, wanted = Branches(case.seed), expected_paths(case.targets)
    handle = subject.model.attach(Branches(case.seed), case.spec)
    reported = sorted(handle.sites())
    must(reported == sorted(wanted), "modules reported as adapted", ", ".join(sorted(wanted)), ", ".join(reported))
    with torch.no_grad():
        for parameter in handle.module.parameters():
            if parameter.requires_grad:
                parameter.fill_(1.0)
        x = torch.ones(1, WIDTH)
        before, after = bare(x), handle.module.eval()(x)
    changed = sorted(path for path in before if not torch.equal(before[path], after[path]))
    must(changed == sorted(wanted), "modules whose output changed", ", ".join(sorted(wanted)), ", ".join(changed))


@hook_binding.on(Facet.MODEL, draws=DrawTargets(), cost=4, dtypes=("float32",), per_model=False)
def _(subject: Subject, case: ModelCase) -> None:
    """Each adapted module computes with its own A and B: values in one of them change that module's output alone.

    And each starts from an A of its own.
    """
    handle = subject.model.attach(Branches(case.seed), case.spec)
    starts = {path: to_numpy(handle.factors(path)[0]) for path in handle.sites()}
    for first, second in itertools.combinations(sorted(starts), 2):
        alike = np.array_equal(starts[first], starts[second])
        must(not alike, f"A of {first} and of {second} at the start", "different values", "the same")
    x = torch.ones(1, WIDTH)
    with torch.no_grad():
        for a, b in (handle.factors(path) for path in handle.sites()):
            a.fill_(1.0)
            b.zero_()
        silent = handle.module.eval()(x)
        for path in handle.sites():
            handle.factors(path)[1].fill_(1.0)
            loud = handle.module(x)
            handle.factors(path)[1].zero_()
            changed = sorted(site for site in silent if not torch.equal(silent[site], loud[site]))
            must(changed == [path], f"outputs that the B of {path} changes", path, ", ".join(changed) or "none")


@pattern_effective.on(
    Facet.MODEL,
    cost=1 / 3,
    dtypes=("float32",),
    per_model=False,
    draws=DrawTargets(
        ("rank", "alpha", "path rank", "path alpha", "stray target", "stray rank", "stray alpha", "stray second")
    ),
)
def _(subject: Subject, case: ModelCase) -> None:
    """Every target and every key of a rank or alpha pattern takes effect on at least one module, or is refused.

    A key is the end of a path, a target's or a longer one, up to the whole path of one module.
    """
    operation = case.operation
    if operation.endswith(("rank", "alpha")) and not subject.has(Feature.PATTERNS):
        return
    if operation == "stray second" and not subject.has(Feature.MULTI_ADAPTER):
        return
    plain = case.spec
    if operation == "stray second":
        handle = subject.model.attach(Branches(case.seed), plain)
        stray = _changed(case, targets=("nowhere",))
        _must_refuse(lambda: handle.add("second", stray.spec), "a second adapter whose target matches nothing")
    elif operation.startswith("stray"):
        stray = {
            "stray target": _changed(case, targets=(*case.targets, "nowhere")),
            "stray rank": _changed(case, rank_pattern=(("nowhere", 3),)),
            "stray alpha": _changed(case, alpha_pattern=(("nowhere", 3.0),)),
        }[operation]
        attach = subject.model.attach
        _must_refuse(
            lambda: attach(Branches(case.seed), stray.spec), f"a {operation.split()[1]} key that matches nothing"
        )
    else:
        keys, paths = case.targets[:-1] or case.targets, sorted(expected_paths(case.targets))
        if operation.startswith("path"):
            keys = (paths[case.seed % len(paths)],)
        patterned = _changed(case, **{f"{operation.split()[-1]}_pattern": tuple((key, 5) for key in keys)})
        handle = subject.model.attach(Branches(case.seed), patterned.spec)
        for path in handle.sites():
            _must_follow(handle, patterned, path)


def _must_refuse(request: Any, what: str) -> None:
    try:
        request()
    except Exception:  # noqa: BLE001 - any exception is a refusal
        return
    must(condition=False, quantity=what, expected="a refusal", got="silence")


def _must_follow(handle: ModelHandle, case: ModelCase, path: str) -> None:
    spec = case.spec.at(path)
    a, b = (to_numpy(factor) for factor in handle.factors(path))
    shapes = f"A {a.shape}, B {b.shape}"
    must(a.shape[0] == b.shape[1] == spec.r, f"shapes at {path}", f"rank {spec.r}", shapes)
    r, scaling = handle.spec_at(path)
    must((r, scaling) == (spec.r, spec.scaling), f"rank and scaling at {path}", (spec.r, spec.scaling), (r, scaling))


def _changed(case: ModelCase, **fields: Any) -> ModelCase:
    return replace(case, **fields)
