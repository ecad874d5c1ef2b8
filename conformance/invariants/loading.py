"""Adapter files that are loaded into a model which has adapters already."""

from __future__ import annotations

from pathlib import Path

from conformance.contract import Facet, Feature
from conformance.from_files import FromFiles
from conformance.invariant import invariant
from conformance.invariants.persistence import folder
from conformance.loads import DrawLoads, Loads
from conformance.peft_layout import NOWHERE, Damage, damage, write_adapter
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.spec import LoraSpec

added_adapter_isolation = invariant("added-adapter-isolation", family="persist", after=("roundtrip",))
load_atomic = invariant("load-atomic", family="persist", after=("added-adapter-isolation",))

_COST = 5


@added_adapter_isolation.on(
    Facet.STORE,
    needs={Feature.LOAD_BESIDE, Feature.MULTI_ADAPTER, Feature.PEFT_LAYOUT},
    cost=_COST,
    draws=DrawLoads(patterns=True, states=("plain", "training", "disabled", "merged")),
)
def _(subject: Subject, case: Loads) -> None:
    """An adapter that is loaded from files beside others is what its files say, and nothing else has changed.

    Judged with up to four, loaded one after the other into a model in eval or training mode, with adapters disabled or
    merged (a load may be refused then). A load leaves all others' A (r, in), B (out, r), r and s, the base and the
    weights in use bit for bit; A and B stay where an optimiser has them, in their dtype, trainable or not. The mode and
    which adapters are active, enabled or merged do not change: every adapted module still gives its closed form. So it
    does when each adapter is activated alone: with that adapter's own factors, or the base where it has none. A deleted
    adapter takes nothing with it, and what is loaded under its name later is all that the name means.
    """
    with folder() as root:
        model = FromFiles(subject, case, root)
        for n, when in enumerate(case.states, 1):
            model.load_while(when, n, f"adapter{n}")
            model.activate(f"adapter{n}")
        for name in model.adapters:
            model.judge_alone(name)
        if subject.has(Feature.DELETE):
            model.activate("default")
            model.delete(name)
            model.load(len(case.states) - 1, name)
            model.judge_alone(name)


@load_atomic.on(
    Facet.STORE,
    needs={Feature.LOAD_BESIDE, Feature.MULTI_ADAPTER, Feature.PEFT_LAYOUT},
    cost=_COST,
    draws=DrawLoads(operations=("", *Damage, NOWHERE)),
)
def _(subject: Subject, case: Loads) -> None:
    """A further adapter is loaded whole or not at all: after a refusal the model is as it was, and the name is free.

    Judged with canonical files that are damaged as for load-strict, or that name only modules which are not there: they
    must be refused, and the right file can then be loaded under the same name. Under the name of another adapter a file
    may be refused, or replace it whole, A, B, r and s at every module; never a part of it.
    """
    name = "default" if case.taken else "second"
    with folder() as root:
        model = FromFiles(subject, case, root)
        state, sites = model.state(), sorted(model.handle.sites())
        try:
            subject.store.add(model.handle, _asked(model, root / "asked"), name)
        except Exception:  # noqa: BLE001 - any exception is a refusal
            model.must_hold(state, "a load was refused")
            now = sorted(model.handle.sites())
            must(now == sites, "adapted modules after a refused load", ", ".join(sites), ", ".join(now))
            if name == "second":
                model.load(1, name)
        else:
            must(not case.operation, f"loading a file with {case.operation}", "a refusal", "silence")
            model.adapters[name] = model.files[1]
            model.judge_factors(name)
        model.judge_alone(name)


def _asked(model: FromFiles, where: Path) -> Path:
    """The second adapter's canonical file, spoilt as the case says."""
    files, what = model.files[1], model.case.operation
    spec, factors = files.case.spec, files.factors
    if what == NOWHERE:
        spec = LoraSpec(r=spec.r, alpha=spec.alpha, targets=("nowhere",))
        factors = {"nowhere": next(iter(factors.values()))}
    write_adapter(where, spec, factors)
    if what in tuple(Damage):
        damage(where, Damage(what))
    return where
