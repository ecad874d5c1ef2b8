"""Ways to run a layer: checkpointed or compiled, it is the same layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from conformance.cases import Case
from conformance.contract import Array, Facet, Feature, Grads, Handle, How
from conformance.dropout import replayed_mask
from conformance.invariant import invariant
from conformance.invariants.gradients import judge_gradients
from conformance.model_cases import DrawModel, ModelCase
from conformance.models import checkpoint_activations
from conformance.sites import backward, outputs
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must
from lora_ref.oracle import Oracle

checkpoint_equivalence = invariant("checkpoint-equivalence", family="ways", after=("grad-oracle",))
compile_equivalence = invariant("compile-equivalence", family="ways", after=("grad-oracle",))


@checkpoint_equivalence.on(
    Facet.LAYER,
    needs={Feature.CHECKPOINT},
    draws=Draw(rows=True, small=True, dropout=(0.5, 0.5, 0.0)),
)
def _(subject: Subject, case: Case) -> None:
    """Activation checkpointing changes no value and no gradient, in either mode, and replays dropout's mask.

    With ``use_reentrant=True`` the input must ask for gradients: where the embeddings of a model are frozen, its user
    calls ``enable_input_require_grads`` first, as transformers documents. Without reentrancy nothing is to be prepared.
    On a model every gradient is, bit for bit, what it is without checkpointing, and every A and B has one.
    """
    if case.kind in {"conv", "embedding"} or not subject.has(Feature.DROPOUT):
        case = replace(case, dropout=0.0)
    mask = replayed_mask(subject, case, seed=case.seed) if case.dropout else None
    expected = case.oracle(subject.manifest).forward(case.arrays.x, mask)
    ways = [How.CHECKPOINTED, *([How.REENTRANT] if case.geometry.differentiable else [])]
    for how in ways:
        handle = subject.attach(case)
        grads = handle.vjp(case.arrays.x, case.arrays.dy, train=True, seed=case.seed, how=how)
        subject.judge(f"y {how}", grads.y, expected, exact=case.tier == "exact", spec=case.spec)
        judge_gradients(subject, case, grads, mask)


@checkpoint_equivalence.on(
    Facet.MODEL, needs={Feature.CHECKPOINT}, cost=12, draws=DrawModel(), dtypes=("float32", "bfloat16")
)
def _(subject: Subject, case: ModelCase) -> None:
    plain, calls = _model_gradients(subject, case, lambda _: None)
    for name, gradient in plain.items():
        must(gradient is not None, f"gradient of {name} without checkpointing", "one", "none")
    for reentrant in (False, True):
        got, more = _model_gradients(subject, case, _Checkpointing(reentrant))
        way = f"with use_reentrant={reentrant}"
        must(more > calls, f"calls of adapted modules {way}", f"more than {calls}, as they are run again", more)
        for name, gradient in plain.items():
            assert gradient is not None
            subject.judge.same(f"gradient of {name} {way}", got[name], gradient)


@dataclass(frozen=True)
class _Checkpointing:
    """What a user of transformers does after adapting a model whose embeddings are frozen."""

    reentrant: bool

    def __call__(self, module: Any) -> None:
        checkpoint_activations(module, reentrant=self.reentrant)
        if self.reentrant:
            module.enable_input_require_grads()


def _model_gradients(
    subject: Subject, case: ModelCase, prepare: Callable[[Any], None]
) -> tuple[dict[str, Array | None], int]:
    """Gradients of every A and B of a fresh model in training mode, and how often adapted modules were called."""
    dropout = 0.25 if subject.has(Feature.DROPOUT) else 0.0
    handle = subject.model.attach(case.loaded.fresh(), replace(case.spec, dropout=dropout))
    case.fill(handle)
    prepare(handle.module)
    handle.module.train()
    called: list[str] = []
    for path, site in handle.sites().items():
        site.register_forward_pre_hook(lambda _site, _args, path=path: called.append(path))
    torch.manual_seed(case.seed)
    trained = [y for y in outputs(handle.module, case.loaded.inputs(case.seed)) if y.requires_grad]
    if trained:
        backward(case, trained)
    found: dict[str, Array | None] = {}
    for path in handle.sites():
        for name, factor in zip("AB", handle.factors(path), strict=True):
            found[f"{name} of {path}"] = None if factor.grad is None else to_numpy(factor.grad)
    return found, len(called)


@compile_equivalence.on(
    Facet.LAYER,
    needs={Feature.COMPILE},
    cost=25,
    slow=True,
    draws=Draw(kinds=("linear", "transposed", "embedding"), tiers=("exact",), rows=True, headroom=1),
    dtypes=("float32", "bfloat16"),
)
def _(subject: Subject, case: Case) -> None:
    """A compiled layer gives the closed form's bits after each change that the eager one would follow.

    Changes: new values in A and B, a new scale, merge, unmerge, another active adapter, disabling. No recompile storm:
    an equal call, new values, a second new scale and a state that was seen before compile nothing.
    """
    handle = subject.attach(case)
    run = _CompiledCalls(subject, case, handle)
    own, other = case.arrays, case.sibling(1).arrays
    plain = case.oracle(subject.manifest)
    run("at first", plain, new=True)
    must(handle.compilations() > 0, "graphs compiled by the first compiled call", "at least one", "none")
    run("again", plain)
    handle.write(other.a, other.b)
    rewritten = case.oracle_of(other.a, other.b, subject.manifest)
    run("with new values in A and B", rewritten)
    if subject.has(Feature.RUNTIME_SCALE):
        for nth, factor in enumerate((2.0, 0.5, 1.0)):
            handle.set_scale(factor)
            scaled = case.oracle_of(other.a, other.b, subject.manifest, factor=factor)
            run(f"at a runtime scale of {factor:g}", scaled, new=nth == 0)
    if subject.has(Feature.MERGE) and subject.has(Feature.UNMERGE):
        handle.merge()
        run("while merged", rewritten, new=True, gradients=False)
        handle.unmerge()
        run("once unmerged", rewritten)
        handle.write(own.a, own.b)
        handle.merge()
        run("while merged again, with other values", plain, gradients=False)
        handle.unmerge()
    handle.write(own.a, own.b)
    run("with its first values again", plain)
    if subject.has(Feature.MULTI_ADAPTER):
        handle.add("second", case.sibling(1).spec, other.a, other.b)
        handle.activate("second")
        run("with a second adapter active", rewritten, new=True, gradients=False)
        handle.activate("default")
        run("with the first adapter active again", plain, new=True)  # an adapter more may be a state of its own
        handle.activate("second")
        run("with the second adapter active again", rewritten, gradients=False)
        handle.activate("default")
    if subject.has(Feature.DISABLE):
        handle.enable(False)  # noqa: FBT003
        none = case.oracle_of(own.a, own.b * 0, subject.manifest)
        run("while disabled", none, new=True, gradients=False)
        handle.enable(True)  # noqa: FBT003
        run("once enabled", plain)


@dataclass
class _CompiledCalls:
    """Compiled calls of one handle, each judged; ``new`` says whether a state may be new, and so be compiled."""

    subject: Subject
    case: Case
    handle: Handle

    def __call__(self, when: str, oracle: Oracle, *, new: bool = False, gradients: bool = True) -> None:
        x, dy, judge, spec = self.case.arrays.x, self.case.arrays.dy, self.subject.judge, self.case.spec
        before = self.handle.compilations()
        grads: Grads = self.handle.vjp(x, dy, how=How.COMPILED)
        delta = oracle.delta(x).value
        judge(f"y of a compiled call {when}", grads.y, oracle.forward(x), exact=True, delta=delta, spec=spec)
        if gradients:
            expected = oracle.gradients(x, dy)
            judge(f"dA of a compiled call {when}", grads.da, expected.a, exact=True, spec=spec)
            judge(f"dB of a compiled call {when}", grads.db, expected.b, exact=True, spec=spec)
            if expected.x is not None:
                judge(f"dx of a compiled call {when}", grads.dx, expected.x, exact=True, spec=spec)
        after = self.handle.compilations()
        must(new or after == before, f"graphs compiled by a call {when}", "none", after - before, "recompiled")
