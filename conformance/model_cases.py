"""Cases for whole models: which modules are adapted and how. Values come from the seed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import nn

from conformance.contract import Array, Feature, ModelHandle, dtype_of
from conformance.models import Loaded, load
from conformance.strategies import ALPHAS
from conformance.subject import Subject
from lora_ref.spec import Init, LoraSpec


@dataclass(frozen=True)
class ModelCase:
    """An adapter on a model. ``operation`` is the step that an invariant varies, where it has one."""

    model: str
    targets: tuple[str, ...]
    r: int
    alpha: float
    dtype: str = "float32"
    rslora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    operation: str = ""
    init: Init = "default"
    seed: int = 0

    @classmethod
    def from_fields(cls, given: Mapping[str, Any]) -> ModelCase:
        unknown = set(given) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a case has no field {', '.join(sorted(unknown))}")
        try:
            values: dict[str, Any] = {k: _tuples(v) for k, v in given.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"the case is incomplete: {error}") from None

    @property
    def spec(self) -> LoraSpec:
        return LoraSpec(
            r=self.r,
            alpha=self.alpha,
            rslora=self.rslora,
            targets=self.targets,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            init=self.init,
        )

    @property
    def patterned(self) -> bool:
        return bool(self.rank_pattern or self.alpha_pattern)

    @property
    def loaded(self) -> Loaded:
        return load(self.model, self.dtype)

    def described(self) -> dict[str, Any]:
        plain = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if v != plain[k] or k in {"dtype", "seed"}}

    def to_json(self) -> str:
        return json.dumps(self.described(), separators=(",", ":"))

    def fill(self, handle: ModelHandle, adapter: str = "default", *, shift: int = 0) -> None:
        """Gaussian values for every A and B, each scaled by its number of inputs, so that no activation explodes."""
        generator = torch.Generator().manual_seed((self.seed + shift) % 2**63)
        with torch.no_grad():
            for path in sorted(handle.sites()):
                for factor in handle.factors(path, adapter):
                    values = torch.randn(factor.shape, generator=generator) / factor.shape[-1] ** 0.5
                    factor.copy_(values.to(factor.dtype))

    def factors(self) -> dict[str, tuple[Array, Array]]:
        """Such values as arrays: A (r, in) and B (out, r) of every linear target, in the model's dtype."""
        rng, found = np.random.default_rng(self.seed), {}
        for path, module in self.loaded.module.named_modules():
            if isinstance(module, nn.Linear) and path.rsplit(".", 1)[-1] in self.targets:
                r = self.spec.at(path).r
                shapes = ((r, module.in_features), (module.out_features, r))
                a, b = (rng.standard_normal(shape) / shape[-1] ** 0.5 for shape in shapes)
                found[path] = (a.astype(dtype_of(self.dtype)), b.astype(dtype_of(self.dtype)))
        return found


def missing_transformers() -> str:
    """Why no model can be built here, or ""."""
    if importlib.util.find_spec("transformers") is not None:
        return ""
    return "transformers is not installed: pip install 'lora-conformance[models]'"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def linear_names(module: nn.Module) -> list[str]:
    """Last parts of the paths of all linear modules, but for an output head, whose weight may be tied."""
    head = getattr(module, "get_output_embeddings", lambda: None)()
    found = {p.rsplit(".", 1)[-1] for p, m in module.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return sorted(found)


@dataclass(frozen=True)
class DrawModel:
    """Any non-empty subset of a model's linear module names, with any rank and alpha."""

    operations: tuple[str, ...] = ("",)
    patterns: bool = False

    def __call__(self, subject: Subject) -> SearchStrategy[ModelCase]:
        return _draw(self, subject)

    def rebuild(self, given: Mapping[str, Any]) -> ModelCase:
        return ModelCase.from_fields(given)

    def pinned(self, subject: Subject, given: Mapping[str, Any]) -> ModelCase:
        names = linear_names(load(subject.on, subject.dtype).module)
        return self.rebuild({"targets": names[:1], **given, "model": subject.on, "dtype": subject.dtype})

    def lacking(self, subject: Subject) -> str:  # noqa: ARG002 - every model has linear modules
        return missing_transformers()


@st.composite
def _draw(draw: DrawFn, ask: DrawModel, subject: Subject) -> ModelCase:
    names = linear_names(load(subject.on, subject.dtype).module)
    some = draw(st.lists(st.sampled_from(names), min_size=1, max_size=len(names), unique=True))
    r = draw(st.sampled_from((2, 4, 1, 3, 8)))
    alpha = draw(st.sampled_from([alpha for alpha in ALPHAS if alpha != r]))
    fields: dict[str, Any] = {"rslora": subject.has(Feature.RSLORA) and draw(st.booleans())}
    if ask.patterns and subject.has(Feature.PATTERNS):
        fields["rank_pattern"] = ((some[0], r + 1),) if draw(st.booleans()) else ()
        fields["alpha_pattern"] = ((some[-1], 5.0),) if draw(st.booleans()) else ()
    return ModelCase(
        model=subject.on,
        targets=tuple(some),
        r=r,
        alpha=alpha,
        dtype=subject.dtype,
        operation=draw(st.sampled_from(ask.operations)),
        seed=draw(st.integers(0, 2**32 - 1)),
        **fields,
    )
