"""Shared storage: merging one module leaves every other as it was."""

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
from conformance.sites import outputs, site_oracle, watching
from conformance.subject import Subject

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
