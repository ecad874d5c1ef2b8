"""The same statements on whole models, judged site by site from what each site really saw."""

from __future__ import annotations

import torch

from conformance.contract import Facet, Feature, ModelHandle
from conformance.invariants.forward import forward_oracle
from conformance.invariants.freezing import base_frozen, trainable_set_exact
from conformance.invariants.gradients import grad_oracle
from conformance.invariants.identity import identity_at_init
from conformance.invariants.merge import merge_delta_oracle, merge_equivalence, restored, unmerge_restores_base
from conformance.model_cases import DrawModel, ModelCase
from conformance.sites import backward, outputs, site_oracle, watching
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must

_COST = 10  # a model takes some ten times as long as a layer


@identity_at_init.on(Facet.MODEL, needs={Feature.INIT}, cost=_COST, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    inputs = case.loaded.inputs(case.seed)
    with torch.no_grad():
        expected = outputs(case.loaded.fresh(), inputs)
        torch.manual_seed(case.seed % 2**63)
        handle = subject.model.attach(case.loaded.fresh(), case.spec)
        for nth, (got, wanted) in enumerate(zip(outputs(handle.module.eval(), inputs), expected, strict=True)):
            subject.judge.same(f"output {nth} of the model", to_numpy(got), to_numpy(wanted))


@forward_oracle.on(Facet.MODEL, cost=_COST / 2, draws=DrawModel(patterns=True))
def _(subject: Subject, case: ModelCase) -> None:
    handle = _filled(subject, case)
    with torch.no_grad(), watching(handle) as seen:
        outputs(handle.module, case.loaded.inputs(case.seed))
    must(seen, "adapted modules that were called", "at least one", "none")
    for path, call in seen.items():
        oracle = site_oracle(case, handle, path, subject.manifest)
        delta = oracle.delta(call.x).value
        spec = case.spec.at(path)
        subject.judge(f"y of {path}", call.y, oracle.forward(call.x), exact=False, delta=delta, spec=spec)


@grad_oracle.on(Facet.MODEL, cost=_COST, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    handle = _filled(subject, case)
    with watching(handle) as seen:
        backward(case, outputs(handle.module, case.loaded.inputs(case.seed)))
    for path, call in seen.items():
        must(call.dy is not None, f"gradient of the output of {path}", "one", "none")
        assert call.dy is not None
        expected = site_oracle(case, handle, path, subject.manifest).gradients(call.x, call.dy)
        for name, factor, wanted in zip(("dA", "dB"), handle.factors(path), (expected.a, expected.b), strict=True):
            got = None if factor.grad is None else to_numpy(factor.grad)
            subject.judge(f"{name} of {path}", got, wanted, exact=False, spec=case.spec.at(path))


@trainable_set_exact.on(Facet.MODEL, cost=_COST, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    handle = _filled(subject, case)
    factors = {id(factor) for path in handle.sites() for factor in handle.factors(path)}
    named = dict(handle.module.named_parameters())
    stray = [name for name, p in named.items() if p.requires_grad and id(p) not in factors]
    must(not stray, "trainable parameters besides A and B", "none", ", ".join(stray[:4]))
    frozen = [name for name, p in named.items() if id(p) in factors and not p.requires_grad]
    must(not frozen, "frozen A or B", "none", ", ".join(frozen[:4]))


@base_frozen.on(Facet.MODEL, cost=_COST, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    handle = _filled(subject, case)
    live = [p for p in handle.module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(live, lr=1e-3, weight_decay=0.1)
    for step in range(2):
        optimiser.zero_grad()
        backward(case, outputs(handle.module.train(), case.loaded.inputs(case.seed + step)))
        optimiser.step()
    _judge_base(subject, case, handle, "after two steps")


@merge_delta_oracle.on(Facet.MODEL, needs={Feature.MERGE}, cost=_COST, draws=DrawModel(patterns=True))
def _(subject: Subject, case: ModelCase) -> None:
    handle = _filled(subject, case)
    handle.merge()
    for path in handle.sites():
        oracle = site_oracle(case, handle, path, subject.manifest)
        delta, spec = oracle.delta_weight().value, case.spec.at(path)
        got = to_numpy(handle.weight(path))
        subject.judge(f"W' of {path}", got, oracle.merged_weight(narrow=True), exact=False, delta=delta, spec=spec)


@merge_equivalence.on(Facet.MODEL, needs={Feature.MERGE}, cost=_COST, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    handle = _filled(subject, case)
    handle.merge()
    with torch.no_grad(), watching(handle) as seen:
        outputs(handle.module, case.loaded.inputs(case.seed))
    for path, call in seen.items():
        oracle = site_oracle(case, handle, path, subject.manifest)
        delta, spec = oracle.delta(call.x).value, case.spec.at(path)
        expected = oracle.merged_forward(call.x, narrow=True)
        subject.judge(f"y of {path} while merged", call.y, expected, exact=False, delta=delta, spec=spec)


@unmerge_restores_base.on(Facet.MODEL, needs={Feature.MERGE, Feature.UNMERGE}, cost=_COST, draws=DrawModel())
def _(subject: Subject, case: ModelCase) -> None:
    """One cycle on every site of the model; drift over many cycles is judged on the layer."""
    handle = _filled(subject, case)
    handle.merge()
    handle.unmerge()
    for path in handle.sites():
        oracle = site_oracle(case, handle, path, subject.manifest)
        got = to_numpy(handle.weight(path))
        subject.judge(f"W of {path} after one cycle", got, restored(oracle), exact=False)


def _filled(subject: Subject, case: ModelCase) -> ModelHandle:
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    handle.module.eval()
    return handle


def _judge_base(subject: Subject, case: ModelCase, handle: ModelHandle, when: str) -> None:
    pristine = case.loaded.module.state_dict()
    tensors = handle.base_tensors()
    missing = sorted(pristine.keys() - tensors.keys())
    must(not missing, f"base tensors {when}", f"{len(pristine)} tensors", f"without {', '.join(missing[:3])}")
    for name, value in pristine.items():
        subject.judge.same(f"{name} {when}", to_numpy(tensors[name]), to_numpy(value))
