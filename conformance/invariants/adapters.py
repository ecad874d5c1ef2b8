"""Several adapters on one base: each is itself, whatever happens to the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from conformance.cases import Case, Kind
from conformance.contract import Array, Facet, Feature, Handle, Tensor
from conformance.invariant import invariant
from conformance.several import DrawSeveral, Several
from conformance.subject import Subject
from conformance.violation import must
from lora_ref.rounding import Bounded

adapter_isolation = invariant("adapter-isolation", family="adapters", after=("forward-oracle",))
active_set_additive = invariant("active-set-additive", family="adapters", after=("adapter-isolation",))

# convolutions are merged where the delta itself is judged
KINDS: tuple[Kind, ...] = ("linear", "transposed", "embedding", "conv")


@adapter_isolation.on(
    Facet.LAYER,
    needs={Feature.MULTI_ADAPTER, Feature.DISABLE},
    cost=2,
    draws=DrawSeveral(kinds=KINDS, rows=True, small=True, headroom=3),
)
def _(subject: Subject, case: Case) -> None:
    """Adding, writing, using, training, merging and deleting one adapter changes nothing of another, nor of the base.

    Not even if it holds NaN. The other one's output, its A and B and what is trainable of them keep their bits; with
    all adapters disabled the output is the base layer's, bit for bit, before and after.
    """
    assert isinstance(case, Several)
    handle = subject.attach(case)
    before = _state(subject, case, handle, "default")
    spec, a, b = case.adapters[1]
    handle.add("second", spec, a, b)
    kept, moved, nth = ("second", "default", 0) if case.swapped else ("default", "second", 1)
    if case.swapped:
        _must_be(subject, case, handle, "default", before, "adding another")
        handle.activate("second")
        before = _state(subject, case, handle, kept)
    _must_be(subject, case, handle, kept, before, "adding another")

    a, b = case.adapters[nth][1:]
    handle.write(np.full_like(a, np.nan), np.full_like(b, np.nan), moved)
    _must_be(subject, case, handle, kept, before, "writing NaN to another")
    handle.write(a, b, moved)
    _use(subject, case, handle, moved, nth)
    handle.activate(kept)
    _must_be(subject, case, handle, kept, before, "using another")
    if case.tier == "exact" and case.kind != "conv" and subject.has(Feature.MERGE) and subject.has(Feature.UNMERGE):
        handle.activate(moved)
        handle.merge()
        handle.unmerge()
        handle.activate(kept)
        _must_be(subject, case, handle, kept, before, "merging and unmerging another")
    if subject.has(Feature.TRAIN_STEP):
        handle.activate(moved)
        handle.step(case.arrays.x, case.arrays.dy, lr=0.01, weight_decay=0.1)
        handle.activate(kept)
        _must_be(subject, case, handle, kept, before, "training another")
    if subject.has(Feature.DELETE):
        handle.delete(moved)
        _must_be(subject, case, handle, kept, before, "deleting another")


_State = tuple[Array, dict[str, Tensor]]


def _state(subject: Subject, case: Several, handle: Handle, adapter: str) -> _State:
    """The output with only this adapter active, and the tensors that are its own or the base's."""
    nth = 0 if adapter == "default" else 1
    y = handle.forward(case.arrays.x)
    oracle = case.oracle_at(nth, subject.manifest)
    delta, exact = oracle.delta(case.arrays.x).value, case.tier == "exact"
    expected = oracle.forward(case.arrays.x)
    subject.judge(f"y with adapter {adapter}", y, expected, exact=exact, delta=delta, spec=case.adapters[nth][0])
    own = {f"a:{adapter}", f"b:{adapter}", "weight", "bias"}
    return y, {name: tensor for name, tensor in handle.tensors().items() if name in own}


def _must_be(subject: Subject, case: Several, handle: Handle, adapter: str, state: _State, after: str) -> None:
    y, tensors = state
    now = handle.tensors()
    for name, tensor in tensors.items():
        must(name in now, f"{name} after {after}", "it is there", "it is gone")
        subject.judge.same(f"{name} after {after}", now[name].value, tensor.value)
        must(now[name].trainable == tensor.trainable, f"{name} asks for gradients after {after}", tensor.trainable,
             now[name].trainable)  # fmt: skip
    subject.judge.same(f"y with adapter {adapter} after {after}", handle.forward(case.arrays.x), y)
    handle.enable(on=False)
    base = case.oracle(subject.manifest).base_forward(case.arrays.x)
    quantity = f"y with adapters disabled after {after}"
    subject.judge(quantity, handle.forward(case.arrays.x), base, exact=case.tier == "exact")
    handle.enable(on=True)
    subject.judge.same(f"y with adapter {adapter} enabled again after {after}", handle.forward(case.arrays.x), y)


def _use(subject: Subject, case: Several, handle: Handle, adapter: str, nth: int) -> None:
    handle.activate(adapter)
    expected = case.oracle_at(nth, subject.manifest).forward(case.arrays.x)
    y = handle.forward(case.arrays.x)
    subject.judge(f"y after switching to adapter {adapter}", y, expected, exact=case.tier == "exact")


@active_set_additive.on(
    Facet.LAYER,
    needs={Feature.MULTI_ADAPTER},
    cost=2,
    draws=DrawSeveral(kinds=KINDS, rows=True, small=True, headroom=3, others=(1, 2)),
)
def _(subject: Subject, case: Case) -> None:
    """Several active adapters add up: y = x Wᵀ + bias + Σ sᵢ (x Aᵢᵀ) Bᵢᵀ, in forward, gradients and merged weight.

    Each has its own rank, alpha and scaling law. A combined adapter is the sum of its parts' deltas, each times its
    weight, which may be negative; of one part with weight 1 it is that part, whatever its scaling law, up to the
    rounding of its factors. It becomes active and is trained only when asked to, and has values of its own: what is
    written to a part changes nothing of it, nor the other way round.
    """
    assert isinstance(case, Several)
    handle, x, exact = subject.attach(case), case.arrays.x, case.tier == "exact"
    names = ["default", *(f"other{nth}" for nth in range(len(case.ranks)))]
    for name, (spec, a, b) in zip(names[1:], case.adapters[1:], strict=True):
        handle.add(name, spec, a, b)
    handle.activate(*names)
    everything = dict.fromkeys(range(len(names)), 1.0)
    expected = case.forward_of(subject.manifest, everything)
    grads = handle.vjp(x, case.arrays.dy)
    subject.judge("y of all active adapters", grads.y, expected, exact=exact)
    own = case.oracle_at(0, subject.manifest).gradients(x, case.arrays.dy)
    subject.judge("dA with all active", grads.da, own.a, exact=exact)
    subject.judge("dB with all active", grads.db, own.b, exact=exact)
    if own.x is not None and (exact or case.kind != "conv"):
        subject.judge("dx with all active", grads.dx, _dx(subject, case, own.x), exact=exact)
    if subject.has(Feature.COMBINE):
        _judge_combinations(subject, case, handle, names, grads.y)
    if subject.has(Feature.MERGE) and case.kind != "conv":
        handle.activate(*names)
        handle.forward(x)
        handle.merge()
        merged = case.merged_of(subject.manifest, range(len(names)))
        subject.judge("W' of all active adapters", handle.effective_weight(), merged, exact=exact)


def _dx(subject: Subject, case: Several, own: Bounded) -> Bounded:
    """The gradient of x: the base's and the first adapter's, and then each further one's."""
    bare = replace(case, base_zero=True, bias=False)
    base = case.oracle(subject.manifest).base
    for nth in range(1, len(case.adapters)):
        spec, a, b = case.adapters[nth]
        oracle = bare.oracle_of(a, b, subject.manifest, spec=spec)
        more = oracle.gradients(case.arrays.x, case.arrays.dy).x
        assert more is not None
        own = base.round(own + more)
    return own


def _judge_combinations(subject: Subject, case: Several, handle: Handle, names: list[str], y: Array) -> None:
    """``y``: of all of ``names``, which are active."""
    x, exact = case.arrays.x, case.tier == "exact"
    trained = _trained(handle)
    handle.combine("mix", names, case.shares)
    handle.combine("alone", names[:1], [1.0])
    subject.judge.same("y of all active adapters after combining them", handle.forward(x), y)
    now = _trained(handle)
    must(now == trained, "trainable tensors after combining adapters", ", ".join(trained), ", ".join(now))
    handle.activate("mix")
    combined = case.combined(subject.manifest)
    shares = ", ".join(f"{share:g}" for share in case.shares)
    mix = handle.forward(x)
    delta = combined.delta(x).value
    subject.judge(f"y of a combination with weights {shares}", mix, combined.forward(x), exact=exact, delta=delta)
    handle.activate("alone")
    single = replace(case, ranks=(), alphas=(), rsloras=(), shares=(1.0,)).combined(subject.manifest)
    delta, spec = single.delta(x).value, case.spec
    alone = handle.forward(x)
    subject.judge("y of a combination of one", alone, single.forward(x), exact=False, delta=delta, spec=spec)

    _, a, b = case.adapters[0]
    handle.write(-a, b, names[0])
    for name, before in (("alone", alone), ("mix", mix)):
        handle.activate(name)
        subject.judge.same(f"y of {name} after writing to its first part", handle.forward(x), before)
    handle.write(a, b, names[0])
    tensors = handle.tensors()
    handle.write(-tensors["a:alone"].value, tensors["b:alone"].value, "alone")
    handle.activate(names[0])
    expected = case.oracle_at(0, subject.manifest).forward(x)
    subject.judge("y of the first part afterwards", handle.forward(x), expected, exact=exact)


def _trained(handle: Handle) -> list[str]:
    return sorted(name for name, tensor in handle.tensors().items() if tensor.trainable)
