"""Several adapters on a whole model: each module follows what is active there, and nothing else."""

from __future__ import annotations

import torch

from conformance.contract import Facet, Feature, ModelHandle
from conformance.invariants.adapters import adapter_isolation
from conformance.loads import DrawLoads, Loads
from conformance.sites import Seen, oracle_of, outputs, watching
from conformance.subject import Subject
from conformance.torch_arrays import to_torch
from conformance.violation import must


@adapter_isolation.on(Facet.MODEL, needs={Feature.MULTI_ADAPTER}, cost=5, draws=DrawLoads(patterns=True))
def _(subject: Subject, case: Loads) -> None:
    """On a model the adapters have targets, ranks and scalings of their own.

    A fresh one changes nothing. Whether one is active, the other, or the first again, all are disabled, or one was
    deleted: each adapted module gives the closed form of what is active there, and the base's where nothing is; and
    exactly the active adapter's factors are trainable.
    """
    model = _Model(subject, case)
    model.judge("at first")
    model.handle.add("second", case.each[1].spec)
    model.judge("after a second one was added")
    model.activate("second")
    if subject.has(Feature.INIT):
        model.judge("when a fresh second one is active", silent=True)
    model.fill("second")
    model.judge("when the second one is active")
    if subject.has(Feature.DISABLE):
        model.enable(on=False)
        model.judge("when all are disabled", silent=True)
        model.enable(on=True)
        model.judge("when they are enabled again")
    model.activate("default")
    model.judge("when the first one is active again")
    if subject.has(Feature.DELETE):
        model.handle.delete("second")
        model.judge("after the second one was deleted")
        model.handle.add("second", case.each[1].spec)  # the name is free again
        model.judge("after it was added anew")


class _Model:
    """``known`` holds the case and the values of each adapter that was filled, or is about to be."""

    def __init__(self, subject: Subject, case: Loads) -> None:
        self.subject, self.case = subject, case
        self.handle: ModelHandle = subject.model.attach(case.loaded.fresh(), case.spec)
        self.known = {name: (each, each.factors()) for name, each in zip(("default", "second"), case.each, strict=True)}
        self.active, self.enabled = "default", True
        self.fill("default")

    def fill(self, name: str) -> None:
        with torch.no_grad():
            for path, values in self.known[name][1].items():
                for factor, value in zip(self.handle.factors(path, name), values, strict=True):
                    factor.copy_(to_torch(value))

    def activate(self, name: str) -> None:
        self.handle.activate(name)
        self.active = name

    def enable(self, *, on: bool) -> None:
        self.handle.enable(on)
        self.enabled = on

    def judge(self, when: str, *, silent: bool = False) -> None:
        """Every site against the closed form of the active adapter, or of the base where that is ``silent``."""
        with torch.no_grad(), watching(self.handle) as seen:
            outputs(self.handle.module.eval(), self.case.loaded.inputs(self.case.seed))
        _, factors = self.known[self.active]
        for path, call in seen.items():
            self._judge_site(path, call, f"y of {path} {when}", silent=silent or path not in factors)
        if not self.enabled:
            return  # some libraries freeze what is disabled
        live = {id(factor) for path in factors for factor in self.handle.factors(path, self.active)}
        named = self.handle.module.named_parameters()
        wrong = [name for name, parameter in named if parameter.requires_grad != (id(parameter) in live)]
        must(not wrong, f"trainable parameters {when}", "A and B of the active adapter", f"not so: {wrong[:3]}")

    def _judge_site(self, path: str, call: Seen, quantity: str, *, silent: bool) -> None:
        judge, manifest = self.subject.judge, self.subject.manifest
        if silent:
            case, factors = next(known for known in self.known.values() if path in known[1])
            judge(quantity, call.y, oracle_of(case, path, *factors[path], manifest).base_forward(call.x), exact=False)
            return
        case, factors = self.known[self.active]
        oracle = oracle_of(case, path, *factors[path], manifest)
        delta, spec = oracle.delta(call.x).value, case.spec.at(path)
        judge(quantity, call.y, oracle.forward(call.x), exact=False, delta=delta, spec=spec)
