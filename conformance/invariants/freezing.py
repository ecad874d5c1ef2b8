"""Freezing: only A and B are trained."""

from __future__ import annotations

from conformance.cases import Case
from conformance.contract import Facet, Feature, Handle
from conformance.invariant import invariant
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.violation import must

base_frozen = invariant("base-frozen", family="freezing")
trainable_set_exact = invariant("trainable-set-exact", family="freezing", after=("base-frozen",))


@base_frozen.on(Facet.LAYER, needs={Feature.TRAIN_STEP}, cost=2, draws=Draw(rows=True, small=True))
def _(subject: Subject, case: Case) -> None:
    """Base tensors do not ask for gradients, receive none, and are bit-identical after three optimiser steps.

    The steps decay the weights, which shrinks a base that is trained though its gradient is zero.
    """
    handle = subject.attach(case)
    x, dy = case.arrays.x, case.arrays.dy
    grads = handle.vjp(x, dy, train=True)
    must(not grads.base, "gradients in base tensors", "none", f"one in {', '.join(grads.base)}")
    for _ in range(3):
        handle.step(x, dy, lr=0.01, weight_decay=0.1)
    after = handle.tensors()
    for name, tensor in after.items():
        if name.startswith(("a:", "b:")):
            continue
        must(not tensor.trainable, f"{name} asks for gradients", "no", "yes")
    subject.judge.same("base weight after three steps", after["weight"].value, case.arrays.w)
    if case.arrays.bias is not None:
        subject.judge.same("base bias after three steps", after["bias"].value, case.arrays.bias)


@base_frozen.on(Facet.OPERATOR, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    grads = subject.vjp(case)
    must(not grads.base, "gradients in base tensors", "none", f"one in {', '.join(grads.base)}")


@trainable_set_exact.on(Facet.LAYER, needs={Feature.TRAIN_STEP}, cost=2, draws=Draw(rows=True, small=True))
def _(subject: Subject, case: Case) -> None:
    """After every operation exactly the active adapters' factors are trainable.

    Attach, merge and unmerge, disable and enable, add, switch, activate two, switch back, delete: the set is the
    declared one each time.
    """
    handle = subject.attach(case)
    _must_train(handle, "attach", "default")
    if subject.has(Feature.UNMERGE) and case.kind != "conv":
        handle.forward(case.arrays.x)  # a merge belongs to eval mode
        handle.merge()
        handle.unmerge()
        _must_train(handle, "a merge and an unmerge", "default")
    if subject.has(Feature.DISABLE):
        handle.enable(False)  # noqa: FBT003 - the contract's only argument
        handle.enable(True)  # noqa: FBT003 - likewise
        _must_train(handle, "disabling and enabling", "default")
    if not subject.has(Feature.MULTI_ADAPTER) or case.kind == "fused":
        return
    other = case.sibling(1)
    handle.add("second", other.spec, other.arrays.a, other.arrays.b)
    _must_train(handle, "adding a second adapter", "default")
    handle.activate("second")
    _must_train(handle, "switching to it", "second")
    handle.activate("default", "second")
    _must_train(handle, "activating both", "default", "second")
    handle.activate("default")
    _must_train(handle, "switching back", "default")
    if subject.has(Feature.DELETE):
        handle.delete("second")
        _must_train(handle, "deleting the second", "default")


def _must_train(handle: Handle, after: str, *adapters: str) -> None:
    trained = {name for name, tensor in handle.tensors().items() if tensor.trainable}
    wanted = {f"{factor}:{adapter}" for factor in "ab" for adapter in adapters}
    must(
        trained == wanted,
        f"trainable tensors after {after}",
        ", ".join(sorted(wanted)),
        ", ".join(sorted(trained)) or "none",
    )
