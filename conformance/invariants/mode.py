"""Mode: training and evaluation, and the way between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis.strategies import SearchStrategy

from conformance.cases import Case
from conformance.contract import Facet, Feature
from conformance.dropout import judge_frequency, replayed_mask
from conformance.invariant import invariant
from conformance.invariants.gradients import judge_gradients
from conformance.invariants.training import DrawStack
from conformance.stack import PARTS, StackCase
from conformance.strategies import Draw
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy, to_torch
from conformance.violation import must

eval_deterministic = invariant("eval-deterministic", family="mode", after=("forward-oracle",))
dropout_on_delta_only = invariant("dropout-on-delta-only", family="mode", after=("eval-deterministic",))
mode_lifecycle = invariant("mode-lifecycle", family="mode", after=("eval-deterministic", "grad-oracle"))

_CALLS = 100
_SEEDS = 24  # masks drawn for the frequency tests


@eval_deterministic.on(
    Facet.LAYER, draws=Draw(kinds=("linear",), rows=True, small=True, dropout=(0.0, 0.5, 0.25), headroom=1)
)
def _(subject: Subject, case: Case) -> None:
    """In eval mode nothing is random and nothing is remembered: no dropout, and two calls give the same bits.

    They are the closed form's, for another input on the same layer, and for new values of A and B, too.
    """
    if case.dropout and not subject.has(Feature.DROPOUT):
        case = replace(case, dropout=0.0)
    handle = subject.attach(case)
    first = handle.forward(case.arrays.x, seed=1)
    second = handle.forward(case.arrays.x, seed=2)
    subject.judge_output(case, first, case.oracle(subject.manifest).forward(case.arrays.x))
    subject.judge.same("y of a second call", second, first)
    other, oracle = case.sibling(1), case.oracle(subject.manifest)
    exact = case.tier == "exact"
    y = handle.forward(other.arrays.x)
    subject.judge("y of another input", y, oracle.forward(other.arrays.x), exact=exact)
    handle.write(other.arrays.a, other.arrays.b)
    changed = case.oracle_of(other.arrays.a, other.arrays.b, subject.manifest)
    y = handle.forward(case.arrays.x)
    subject.judge("y after new values of A and B", y, changed.forward(case.arrays.x), exact=exact)


@eval_deterministic.on(Facet.OPERATOR, draws=Draw(kinds=("linear",), rows=True))
def _(subject: Subject, case: Case) -> None:
    first, second = subject.vjp(case), subject.vjp(case)
    for name in ("y", "dx", "da", "db"):
        before, after = getattr(first, name), getattr(second, name)
        if before is not None:
            subject.judge.same(f"{name} of a second call", after, before)


@eval_deterministic.on(
    Facet.MODEL, needs={Feature.DROPOUT}, draws=DrawStack(), cost=2, dtypes=("float32",), per_model=False
)
def _(subject: Subject, case: StackCase) -> None:
    """In eval mode a model with dropout gives, bit for bit, what it gives without; in training mode it does not.

    The output is a polynomial in the choices of dropout, of degree 2 in a model of two blocks and with the eval mode's
    output as its mean: where it is not constant it differs from that with a probability of at least 1/4 a call
    (Schwartz 1980, lemma 1). So a false alarm has one of at most 4e-13.
    """
    handle = subject.model.attach(case.base(), replace(case.spec, dropout=0.5))
    case.fill(handle)
    x = to_torch(np.concatenate([case.arrays[f"x:0:{part}"] for part in range(PARTS)]))
    expected = case.expected["y:0"]
    with torch.no_grad():
        base = to_numpy(case.base().eval()(x))
        for _ in range(2):
            module = handle.module.eval()
            subject.judge.same("y in eval mode, of a model with dropout", to_numpy(module(x)), expected)
            module.train()
            if not np.array_equal(base, expected):
                dropped = any(not np.array_equal(to_numpy(module(x)), expected) for _ in range(_CALLS))
                must(
                    dropped, f"y of {_CALLS} calls in training mode with dropout", "one that differs from eval", "none"
                )


@dropout_on_delta_only.on(
    Facet.LAYER,
    needs={Feature.DROPOUT},
    cost=3,
    draws=Draw(kinds=("linear", "transposed", "fused"), rows=True, small=True, dropout=(0.5, 0.75), rank=2),
)
def _(subject: Subject, case: Case) -> None:
    """In training mode dropout acts on A's input and nowhere else: y = x Wᵀ + bias + s ((m∘x) Aᵀ) Bᵀ.

    Each m is 0 with probability p and 1/(1-p) otherwise, independently for every element and every call, so that its
    mean is the eval mode's 1. A false alarm of the four frequency tests has a probability of at most 4e-12 a case.
    Of several adapters each has its own p.
    """
    mask = replayed_mask(subject, case, seed=case.seed)
    handle = subject.attach(case)
    y = handle.forward(case.arrays.x, train=True, seed=case.seed)
    oracle = case.oracle(subject.manifest)
    expected = oracle.forward(case.arrays.x, mask)
    delta = oracle.delta(case.arrays.x, mask).value
    subject.judge("y in training mode", y, expected, exact=case.tier == "exact", delta=delta, spec=case.spec)

    wide = replace(case, lead=(8,))  # more rows, so that few calls tell much
    kept = np.stack([_kept_inputs(subject, wide, seed) for seed in range(_SEEDS)])  # (seeds, rows, inputs)
    p = case.dropout
    judge_frequency("share of inputs that dropout keeps", kept, 1 - p)
    agree = (1 - p) ** 2 + p**2
    judge_frequency("share of equal choices in neighbouring rows", kept[:, 0::2] == kept[:, 1::2], agree)
    judge_frequency("share of equal choices in successive calls", kept[0::2] == kept[1::2], agree)
    judge_frequency("share of equal choices in neighbouring inputs", kept[..., 0] == kept[..., 1], agree)
    if case.kind == "linear" and subject.has(Feature.MULTI_ADAPTER):
        _judge_own_dropout(subject, case)


def _judge_own_dropout(subject: Subject, case: Case) -> None:
    """Of two adapters with the same A and B one has dropout and the other has none, whichever came first.

    Where the delta is not zero, some input decides whether a call differs from eval, so that it does with a probability
    of at least 1/2.
    """
    plain = replace(case, dropout=0.0)  # its values may be others, as without 1/(1-p) there is more room
    for first, second in ((case, plain), (plain, case)):
        at, oracle, exact = first.arrays, first.oracle(subject.manifest), case.tier == "exact"
        handle = subject.attach(first)
        handle.add("second", second.spec, at.a, at.b)
        without, dropping = ("second", "default") if second is plain else ("default", "second")
        handle.activate(without)
        y = handle.forward(at.x, train=True, seed=case.seed)
        subject.judge("y in training mode of the adapter without dropout", y, oracle.forward(at.x), exact=exact)
        handle.activate(dropping)
        if exact and oracle.delta(at.x).value.any():
            still = all(np.array_equal(handle.forward(at.x, train=True, seed=seed), y) for seed in range(_CALLS))
            must(not still, f"y of {_CALLS} calls of the adapter with dropout", "other than without", "as without")


def _kept_inputs(subject: Subject, case: Case, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether the two inputs of each row were kept."""
    return replayed_mask(subject, replace(case, in_features=2, kind="linear", parts=(), enabled=()), seed=seed) > 0


class DrawModes(Draw):
    """Every kind of layer; dropout where its mask can be seen from outside."""

    def __call__(self, subject: Subject) -> SearchStrategy[Case]:
        return super().__call__(subject).map(lambda case: replace(case, dropout=0.0) if case.kind == "conv" else case)


@mode_lifecycle.on(Facet.LAYER, draws=DrawModes(rows=True, small=True, dropout=(0.0, 0.5)))
def _(subject: Subject, case: Case) -> None:
    """train() and eval() through the parent reach the layer each time; training while merged is refused or exact.

    Whatever happens in between, eval gives the closed form, and training gives it with its gradients.
    """
    if not subject.has(Feature.DROPOUT):
        case = replace(case, dropout=0.0)
    handle = subject.attach(case)
    x, dy = case.arrays.x, case.arrays.dy
    expected = case.oracle(subject.manifest).forward(x)
    mask = replayed_mask(subject, case, seed=case.seed) if case.dropout else None
    for _ in range(2):
        subject.judge_output(case, handle.forward(x), expected, quantity="y in eval mode")
        trained = handle.vjp(x, dy, train=True, seed=case.seed)
        training = case.oracle(subject.manifest).forward(x, mask)
        subject.judge("y in training mode", trained.y, training, exact=case.tier == "exact")
        judge_gradients(subject, case, trained, mask)
    if not subject.has(Feature.MERGE) or case.tier != "exact":
        return  # in the bounded tier the merged weight's own rounding would count as an error of training
    handle.forward(x)  # a merge belongs to eval mode
    handle.merge()
    try:
        grads = handle.vjp(x, dy, train=True, seed=case.seed)
    except Exception:  # noqa: BLE001 - refusing in any way is right
        return
    if case.dropout == 0.0:
        reached = grads.da is not None and grads.db is not None
        must(reached, "training while merged", "gradients of A and B, or a refusal", "an output without them, silently")
        judge_gradients(subject, case, grads, mask)
