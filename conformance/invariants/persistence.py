"""Persistence: what is saved comes back, all of it, or the load says why not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from conformance.contract import Facet, Feature, ModelHandle
from conformance.invariant import invariant
from conformance.model_cases import DrawModel, ModelCase
from conformance.peft_layout import Damage, Factors, damage, read_adapter, write_adapter
from conformance.sites import outputs, site_oracle, watching
from conformance.state import State
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import Violation, must

roundtrip = invariant("roundtrip", family="persist", after=("forward-oracle",))
load_strict = invariant("load-strict", family="persist", after=("roundtrip",))
interop = invariant("interop", family="persist", after=("roundtrip",))

_COST = 10
_OTHER = "default2"  # files are told apart by names: one that another name begins with
_STATES: dict[str, tuple[Feature, ...]] = {
    "in training mode": (),
    "disabled": (Feature.DISABLE,),
    "merged": (Feature.MERGE, Feature.UNMERGE),
    "another adapter is active": (Feature.MULTI_ADAPTER,),
}


@roundtrip.on(Facet.STORE, cost=_COST // 2, draws=DrawModel(patterns=True))
def _(subject: Subject, case: ModelCase) -> None:
    """Saved and loaded into a fresh base, an adapter has the same A and B bit for bit, and the same r and s.

    So it has whatever state the model is in: in training mode, disabled, merged (saving may be refused then), or with
    another adapter active whose name begins as its own does; and saving changes nothing of the model. It computes with
    them: each adapted module gives the closed form of what was saved. Its output may differ in the last bit, as that of
    any product does whose factors begin elsewhere in memory.
    """
    handle = _filled(subject, case)
    back = _back(subject, case, handle)
    for state in tuple(_STATES)[case.seed % 2 :: 2]:  # half of them: each costs as much as all else here
        _judge_saving(subject, case, state)
    with torch.no_grad(), watching(back) as seen:
        outputs(back.module.eval(), case.loaded.inputs(case.seed))
    for path, call in seen.items():
        oracle, spec = site_oracle(case, handle, path, subject.manifest), case.spec.at(path)
        delta = oracle.delta(call.x).value
        subject.judge(f"y of {path} after loading", call.y, oracle.forward(call.x), exact=False, delta=delta, spec=spec)


def _judge_saving(subject: Subject, case: ModelCase, when: str) -> None:
    """Saving in this state of the model, if the backend has it."""
    if not all(subject.has(need) for need in _STATES[when]):
        return
    handle = _filled(subject, case)
    known = {"default": list(handle.sites())}
    if when == "another adapter is active":
        handle.add(_OTHER, case.spec)
        case.fill(handle, _OTHER, shift=1)
        handle.activate(_OTHER)
        known[_OTHER] = known["default"]
    handle.module.train(when == "in training mode")
    if when == "disabled":
        handle.enable(on=False)
    elif when == "merged":
        handle.merge()
    before = State(subject, handle, known)
    try:
        _back(subject, case, handle, f" saved while {when}")
    except Violation:
        raise
    except Exception:
        if when != "merged":
            raise
    before.must_hold(f"after saving while {when}")


def _filled(subject: Subject, case: ModelCase) -> ModelHandle:
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    return handle


def _back(subject: Subject, case: ModelCase, handle: ModelHandle, when: str = "") -> ModelHandle:
    """The adapter, saved and loaded into a fresh base: bit for bit the same."""
    with folder() as saved:
        subject.store.dump(handle, saved)
        back = subject.store.load(case.loaded.fresh(), saved)
    _must_have_same_sites(back, handle)
    for path in handle.sites():
        for name, live, loaded in zip("AB", handle.factors(path), back.factors(path), strict=True):
            subject.judge.same(f"{name} of {path}{when} after loading", to_numpy(loaded), to_numpy(live))
        must(back.spec_at(path) == handle.spec_at(path), f"rank and scaling at {path}{when} after loading",
             handle.spec_at(path), back.spec_at(path))  # fmt: skip
    return back


@interop.on(Facet.STORE, needs={Feature.PEFT_LAYOUT}, cost=_COST // 2, draws=DrawModel(patterns=True))
def _(subject: Subject, case: ModelCase) -> None:
    """Files in PEFT's layout mean the same here as there: written, they hold A, B and s; read, they give them.

    adapter_model.safetensors names base_model.model.<path>.lora_A.weight (r, in) and .lora_B.weight (out, r);
    adapter_config.json has r, lora_alpha, use_rslora and the patterns. Factors that are wider than the base are written
    as they are. Both ways are judged with the suite's own files.
    """
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    if case.dtype != "float32" and subject.has(Feature.MIXED_DTYPE):
        for factor in (factor for path in handle.sites() for factor in handle.factors(path)):
            factor.data = factor.data.float()
    case.fill(handle)
    wanted: Factors = {path: tuple(to_numpy(factor) for factor in handle.factors(path)) for path in handle.sites()}
    with folder() as saved:
        subject.store.dump(handle, saved)
        written = read_adapter(saved)
    must(sorted(written.factors) == sorted(wanted), "modules in the file", ", ".join(sorted(wanted)),
         ", ".join(sorted(written.factors)))  # fmt: skip
    for path, factors in wanted.items():
        for name, live, stored in zip("AB", factors, written.factors[path], strict=True):
            subject.judge.same(f"{name} of {path} in the file", stored, live)
        law = case.spec.at(path).scaling
        scaling = written.spec.at(path).scaling
        must(scaling == law, f"scaling of {path} by the file's config", law, scaling)
    if case.dtype != "float32":
        wanted = case.factors()
    with folder() as saved:
        write_adapter(saved, case.spec, wanted)
        back = subject.store.load(case.loaded.fresh(), saved)
    _must_have_same_sites(back, handle)
    for path, factors in wanted.items():
        for name, canonical, loaded in zip("AB", factors, back.factors(path), strict=True):
            subject.judge.same(f"{name} of {path} read from a canonical file", to_numpy(loaded), canonical)
        expected = case.spec.at(path)
        wanted_law, got = (expected.r, expected.scaling), back.spec_at(path)
        must(got == wanted_law, f"rank and scaling of {path} read from a canonical file", wanted_law, got)


@load_strict.on(Facet.STORE, needs={Feature.PEFT_LAYOUT}, cost=_COST / 6, draws=DrawModel(operations=tuple(Damage)))
def _(subject: Subject, case: ModelCase) -> None:
    """Every tensor of a file is applied, and every adapted module gets its own, or loading is refused.

    Judged with a canonical file that is truncated, empty, lacks a tensor, has one too many, one of a wrong shape, or
    whose names all have another prefix, so that nothing would be applied.
    """
    handle = subject.model.attach(case.loaded.fresh(), case.spec)
    case.fill(handle)
    factors = {path: tuple(to_numpy(factor) for factor in handle.factors(path)) for path in handle.sites()}
    with folder() as saved:
        write_adapter(saved, case.spec, factors)
        damage(saved, Damage(case.operation))
        try:
            subject.store.load(case.loaded.fresh(), saved)
        except Exception:  # noqa: BLE001 - any exception is a refusal
            return
    must(condition=False, quantity=f"loading a file with {case.operation}", expected="a refusal", got="silence")


def _must_have_same_sites(back: ModelHandle, handle: ModelHandle) -> None:
    before, after = sorted(handle.sites()), sorted(back.sites())
    must(after == before, "modules adapted after loading", ", ".join(before), ", ".join(after) or "none")


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lora-conformance-") as name:
        yield Path(name) / "adapter"
