"""One backend on one facet in one dtype: what a check is handed."""

from __future__ import annotations

from dataclasses import dataclass, field

from conformance.cases import Case
from conformance.contract import Array, Backend, Facet, Feature, Grads, Handle, Layer, Manifest, Model, Store, Weights
from conformance.judge import Judge
from lora_ref.rounding import Bounded
from lora_ref.spec import LoraSpec


@dataclass
class Subject:
    backend: Backend
    facet: Facet
    dtype: str
    on: str = ""  # name, path or id of the real model; empty for single layers
    judge: Judge = field(default_factory=Judge)
    exercised: set[Feature] = field(default_factory=set)  # features that a check has made use of

    @property
    def manifest(self) -> Manifest:
        return self.backend.manifest

    def has(self, feature: Feature) -> bool:
        if feature in self.manifest.features:
            self.exercised.add(feature)
            return True
        return False

    @property
    def layer(self) -> Layer:
        assert self.backend.layer is not None
        return self.backend.layer

    @property
    def model(self) -> Model:
        assert self.backend.model is not None
        return self.backend.model

    @property
    def store(self) -> Store:
        assert self.backend.store is not None
        return self.backend.store

    def attach(self, case: Case, *, factors: bool = True) -> Handle:
        """A fresh layer with the case's A and B, or with the backend's own initial ones."""
        return self.layer.attach(case.spec, case.weights(factors=factors))

    def vjp(self, case: Case) -> Grads:
        """Output and gradients through the facet under test, from fresh objects."""
        return self.vjp_of(case.spec, case.weights(), case.arrays.x, case.arrays.dy)

    def vjp_of(self, spec: LoraSpec, weights: Weights, x: Array, dy: Array) -> Grads:
        if self.facet is Facet.OPERATOR:
            assert self.backend.operator is not None
            return self.backend.operator.vjp(spec, weights, x, dy)
        return self.layer.attach(spec, weights).vjp(x, dy)

    def judge_output(self, case: Case, y: object, expected: Bounded, *, quantity: str = "y") -> None:
        """y against the oracle's; the causes that a layer's output can have are looked for."""
        delta = case.oracle(self.manifest).delta(case.arrays.x).value
        exact = case.tier == "exact"
        self.judge(quantity, y, expected, exact=exact, delta=delta, spec=case.spec)  # type: ignore[arg-type]
