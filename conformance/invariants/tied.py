"""Shared storage: what is done to one module leaves every other as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import nn

from conformance.contract import Facet, Feature
from conformance.invariant import invariant
from conformance.model_cases import DrawModel, ModelCase
from conformance.models import load
from conformance.sites import backward, outputs, site_oracle, watching
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must

tied_head_isolated = invariant("tied-head-isolated", family="freezing", after=("forward-oracle", "base-frozen"))
merge_no_alias = invariant("merge-no-alias", family="merge", after=("merge-equivalence",))


@dataclass(frozen=True)
class DrawTied(DrawModel):
    """An adapter on the output head, in models that tie its weight to the embedding."""

    def __call__(self, subject: Subject) -> SearchStrategy[ModelCase]:
        head = _head(subject)
        return super().__call__(subject).map(lambda case: replace(case, targets=(head,)))

    def rebuild(self, given: Mapping[str, Any]) -> ModelCase:
        return ModelCase.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> ModelCase:
        return super().pinned(subject, {**given, "targets": [_head(subject)]})

    def lacking(self, subject: Subject) -> str:
        missing = super().lacking(subject)
        return missing or ("" if _head(subject) else f"{subject.on} ties no weights")


def _head(subject: Subject) -> str:
    """Path of the tied output head, or ""."""
    module: nn.Module = load(subject.on, subject.dtype).module
    head, embedding = _call(module, "get_output_embeddings"), _call(module, "get_input_embeddings")
    if head is None or head.weight is not embedding.weight:
        return ""
    paths: list[str] = [path for path, found in module.named_modules() if found is head]
    return paths[0]


def _call(module: Any, name: str) -> Any:
    return getattr(module, name)()


@tied_head_isolated.on(Facet.MODEL, needs={Feature.TIED}, cost=10, draws=DrawTied())
def _(subject: Subject, case: ModelCase) -> None:
    """An adapter on a head that shares the embedding's weight changes the head alone, trained or not.

    What reaches the head is bit for bit what reaches it in the bare model, before and after an optimiser step on all
    that is trainable, and the two modules still share one weight.
    """
    bare, path = case.loaded.module, case.targets[0]
    inputs = case.loaded.inputs(case.seed)
    reached: list[torch.Tensor] = []
    hook = bare.get_submodule(path).register_forward_pre_hook(lambda _head, args: reached.append(args[0]))
    try:
        with torch.no_grad():
            outputs(bare, inputs)
    finally:
        hook.remove()
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    module = handle.module.eval()
    for when in ("with an adapter on it", "after a step"):
        with watching(handle) as seen:
            results = outputs(module, inputs)
        call = seen[path]
        subject.judge.same(f"what reaches {path} {when}", call.x, to_numpy(reached[0]))
        oracle = site_oracle(case, handle, path, subject.manifest)
        subject.judge(f"y of {path} {when}", call.y, oracle.forward(call.x), exact=False, spec=case.spec)
        backward(case, results)
        torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01).step()
        module.zero_grad()
    shared, wanted = (_memories(tensors) for tensors in (handle.base_tensors(), bare.state_dict(keep_vars=True)))
    must(shared == wanted, f"base tensors that lie in memory of their own, {path} being tied", wanted, shared)


def _memories(tensors: Mapping[str, torch.Tensor]) -> int:
    return len({tensor.data_ptr() for tensor in tensors.values() if tensor.numel()})


@merge_no_alias.on(Facet.MODEL, needs={Feature.MERGE, Feature.TIED}, cost=10, draws=DrawTied())
def _(subject: Subject, case: ModelCase) -> None:
    """Merging a head changes the head alone: an embedding that shares its weight looks up what it did before."""
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    inputs, module = case.loaded.inputs(case.seed), handle.module.eval()
    with torch.no_grad(), watching(handle) as before:
        outputs(module, inputs)
    handle.merge()
    with torch.no_grad(), watching(handle) as after:
        outputs(module, inputs)
    for path, call in after.items():
        subject.judge.same(f"what reaches {path} after its merge", call.x, before[path].x)
        oracle = site_oracle(case, handle, path, subject.manifest)
        subject.judge(f"y of {path} while merged", call.y, oracle.merged_forward(call.x, narrow=True), exact=False)
