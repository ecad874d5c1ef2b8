"""Whole models: the wrong modules are adapted, or the right ones with something of another's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, LinearDelta
from lora_ref.hooks import HookedModel, add_deltas
from lora_ref.layers import Adapters
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec
from lora_ref.targets import matches

EXACT, EFFECTIVE, BINDING = ["target-exact"], ["pattern-effective"], ["hook-binding"]
Dtype = torch.dtype | None


def also(spec: LoraSpec, paths: Iterable[str]) -> LoraSpec:
    return replace(spec, targets=(*spec.targets, *paths))


def known(keys: Iterable[str], paths: Iterable[str]) -> list[str]:
    return [key for key in keys if any(matches(key, path) for path in paths)]


@mutant("substring-targets", killed_by=EXACT, thread="huggingface/peft#3755, unslothai/unsloth-zoo#807")
class SubstringTargets(LoraModel):
    """A target names every module whose path ends with its letters: "proj" takes "q_proj" along."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        return super().plan(name, also(spec, (p for p in self.bases() if p.endswith(spec.targets))), dtype)


@mutant("open-regex-targets", killed_by=EXACT, thread="huggingface/peft#3755")
class RegexTargets(LoraModel):
    """A target is searched as a regular expression: "proj" finds "proj_drop"."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        found = (p for p in self.bases() if any(re.search(rf"(^|\.){target}", p) for target in spec.targets))
        return super().plan(name, also(spec, found), dtype)


@mutant("dot-is-any-character", killed_by=EXACT)
class DotIsAnyCharacter(LoraModel):
    """The dots of a dotted target match any character: "layers.1.q_proj" also means "layers.11.q_proj" cut short."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        found = (p for p in self.bases() if any(re.search(f".{target}$", p) for target in spec.targets))
        return super().plan(name, also(spec, found), dtype)


@mutant("last-name-only", killed_by=EXACT)
class LastNameOnly(LoraModel):
    """Of a dotted target only the last name counts."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        last = {target.rsplit(".", 1)[-1] for target in spec.targets if known([target], self.bases())}
        return super().plan(name, also(spec, last), dtype)


@mutant("first-match-only", killed_by=EXACT)
class FirstMatchOnly(LoraModel):
    """Each target adapts the first module that it matches."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        deltas = super().plan(name, spec, dtype)
        first = {next(path for path in deltas if matches(target, path)) for target in spec.targets}
        return {path: delta for path, delta in deltas.items() if path in first}


@mutant("experts-dropped", killed_by=EXACT, thread="unslothai/unsloth#11014")
class NestedDropped(LoraModel):
    """Modules that lie deeper than two levels are not looked for."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        return {path: delta for path, delta in super().plan(name, spec, dtype).items() if path.count(".") < 3}


@mutant("reported-but-not-adapted", killed_by=EXACT)
class ReportedOnly(HookedModel):
    """Nested modules get their A and B, and no hook that would add them."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        adapters = super().carry(paths)
        for path, module in self.hooked().items():
            if "." in path:
                module.lora.handle.remove()  # type: ignore[union-attr, operator]
        return adapters


@mutant("second-adapter-matches-nothing", killed_by=EFFECTIVE, thread="huggingface/peft#3533")
class SecondMatchesNothing(LoraModel):
    """Whether anything matched is remembered from the first adapter, and not asked for the second."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        return super().plan(name, spec, dtype) if not self.names or known(spec.targets, self.bases()) else {}


@mutant("stray-target-accepted", killed_by=EFFECTIVE)
class StrayTarget(LoraModel):
    """A target that matches nothing is accepted beside one that matches."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        found = tuple(known(spec.targets, self.bases()))
        return super().plan(name, replace(spec, targets=found or spec.targets), dtype)


@mutant("pattern-key-never-matches", killed_by=EFFECTIVE, thread="huggingface/peft#3582, #2419")
class StrayRankKey(LoraModel):
    """A key of a rank pattern that matches nothing is accepted."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        keys = known(spec.rank_pattern, self.bases())
        return super().plan(name, replace(spec, rank_pattern={key: spec.rank_pattern[key] for key in keys}), dtype)


@mutant("stray-alpha-key-accepted", killed_by=EFFECTIVE, thread="huggingface/peft#3582")
class StrayAlphaKey(LoraModel):
    """A key of an alpha pattern that matches nothing is accepted."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        keys = known(spec.alpha_pattern, self.bases())
        return super().plan(name, replace(spec, alpha_pattern={key: spec.alpha_pattern[key] for key in keys}), dtype)


@mutant("rank-pattern-ignored", killed_by=EFFECTIVE)
class RankPatternIgnored(LoraModel):
    """Rank patterns are checked, and then not followed."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        super().plan(name, spec, dtype)
        return super().plan(name, replace(spec, rank_pattern={}), dtype)


@mutant("alpha-pattern-ignored", killed_by=[*EFFECTIVE, "forward-oracle"])
class AlphaPatternIgnored(LoraModel):
    """Alpha patterns are checked, and then not followed."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        super().plan(name, spec, dtype)
        return super().plan(name, replace(spec, alpha_pattern={}), dtype)


@mutant("pattern-of-first-layer-only", killed_by=EFFECTIVE, thread="huggingface/peft#3658")
class PatternOfFirstOnly(LoraModel):
    """A key of a rank pattern reaches the first module that it matches, and no other of that name."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        right, plain = super().plan(name, spec, dtype), super().plan(name, replace(spec, rank_pattern={}), dtype)
        first = {next(path for path in right if matches(key, path)) for key in spec.rank_pattern}
        return {path: (right if path in first else plain)[path] for path in right}


@mutant("mixed-rank-one-scaling", killed_by=[*EFFECTIVE, "forward-oracle"], thread="huggingface/diffusers#14409")
class OneScalingForAllRanks(LoraModel):
    """s is computed once from the overall rank, also where a pattern gives another."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        deltas = super().plan(name, spec, dtype)
        for delta in deltas.values():
            scaling = replace(delta.spec, r=spec.r).scaling
            delta.spec = replace(delta.spec, alpha=delta.spec.alpha * scaling / delta.spec.scaling)
        return deltas


@mutant("closure-captures-loop-var", killed_by=BINDING, thread="vllm-project/vllm#13770")
class ClosureCapturesLoopVariable(LoraModel):
    """Forwards are replaced in a loop, and each calls the one that the loop's variable named last."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        adapters = super().carry(paths)
        for layer in self.layers().values():
            own = layer.forward
            layer.forward = lambda x: own(x)  # type: ignore[method-assign]  # noqa: B023, PLW0108 - the defect
        return adapters


@mutant("neighbours-share-a-delta", killed_by=BINDING)
class SharedDelta(LoraModel):
    """Modules of the same shape share one A and one B."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        shared: dict[object, Delta] = {}
        deltas = super().plan(name, spec, dtype)
        return {path: shared.setdefault((d.a.shape, d.b.shape), d) for path, d in deltas.items()}


@mutant("hook-reads-neighbour", killed_by=[*BINDING, "forward-oracle"])
class HookReadsNeighbour(HookedModel):
    """Each hook reads the adapters of the module that was hooked before its own, where the shapes agree."""

    def carry(self, paths: list[str]) -> dict[str, Adapters]:
        adapters, modules = super().carry(paths), list(self.hooked().values())
        for before, module in zip(modules[-1:] + modules[:-1], modules, strict=True):
            if before.weight.shape == module.weight.shape:
                module.lora.handle.remove()  # type: ignore[union-attr, operator]
                module.lora.handle = module.register_forward_hook(_of(before), with_kwargs=True)  # type: ignore[union-attr]
        return adapters


def _of(other: torch.nn.Module) -> Any:
    def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> Tensor:
        return add_deltas(other, args, kwargs, out)

    return hook


@mutant("model-rslora-ignored", killed_by=["forward-oracle"])
class ModelRsloraIgnored(LoraModel):
    """Whole models do not hand rsLoRA on to their layers."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        return super().plan(name, replace(spec, rslora=False), dtype)


@mutant("pattern-by-target", killed_by=EFFECTIVE)
class PatternByTarget(LoraModel):
    """A pattern is looked up by the target that named the module, so that a key which is a path is passed over."""

    def plan(self, name: str, spec: LoraSpec, dtype: Dtype = None) -> dict[str, Delta]:
        super().plan(name, spec, dtype)
        ranks = {key: r for key, r in spec.rank_pattern.items() if key in spec.targets}
        alphas = {key: alpha for key, alpha in spec.alpha_pattern.items() if key in spec.targets}
        return super().plan(name, replace(spec, rank_pattern=ranks, alpha_pattern=alphas), dtype)


@mutant("same-a-everywhere", killed_by=BINDING, on=Facet.MODEL)
class SameAEverywhere(LinearDelta):
    """Each adapter's A is drawn from a seed of its own, which is the same for all modules."""

    def reset(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().reset()
