"""The deterministic figures of a case: what a backend has to compute, to keep and to hold, without running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.cases import TRAINING, Case, Mode
from bench.nets import Inputs, build
from bench.record import FROZEN
from bench.simulate.fake import faking, make_fake
from bench.simulate.step import Step, take
from bench.subject import Subject, UnsupportedError, adapted
from conformance.discovery import load
from conformance.saved import saved_bytes


@dataclass(frozen=True)
class Counts:
    """flops, moved_bytes, n_ops: of the case's mode. The others are of the whole step, whatever the mode.

    moved_bytes: what the operations read and write, each tensor of each once.
    saved_bytes: what autograd keeps from forward to backward, each memory once, without parameters and buffers.
    sim_peak_bytes: the most that is held at a time, in blocks of 512 bytes, parameters and optimiser included.
    """

    flops: int
    moved_bytes: int
    n_ops: int
    saved_bytes: int
    sim_peak_bytes: int
    trainable_params: int


def count(case: Case, backend_reference: str) -> Counts:
    """The figures of a backend, or of the bare net ("frozen"), under fake tensors, in eager mode.

    Raises:
        UnsupportedError: not a mode of training, a compiled case, or what the backend does not offer.
        UsageError, LoadError: there is no such backend, or it cannot be imported.
    """
    if case.mode not in TRAINING or case.compile:
        raise UnsupportedError("operations are counted in training and without torch.compile")
    subject, mode = _hollow(case, backend_reference)
    with faking(mode):
        inputs = _inputs(case, subject)
        saved = saved_bytes(lambda: subject.call(inputs), [*subject.module.parameters(), *subject.module.buffers()])
        step = _step(case, subject, inputs)
    works = {Mode.FORWARD: [step.forward], Mode.BACKWARD: [step.backward], Mode.STEP: step.works}[case.mode]
    return Counts(
        flops=sum(work.flops for work in works),
        moved_bytes=sum(work.nbytes for work in works),
        n_ops=sum(work.n_ops for work in works),
        saved_bytes=saved,
        sim_peak_bytes=step.tracker.peak,
        trainable_params=sum(p.numel() for p in subject.trainable),
    )


def simulated(case: Case, backend_reference: str) -> Step:
    """A step of the case under fake tensors. The errors of ``count``."""
    subject, mode = _hollow(case, backend_reference)
    with faking(mode):
        return _step(case, subject, _inputs(case, subject))


def tracked(case: Case, backend_reference: str) -> Step:
    """The same step for real, on this machine's CPU. The errors of ``count``."""
    subject = adapted(case, backend_reference)
    return _step(case, subject, subject.net.inputs(0))


def _hollow(case: Case, reference: str) -> tuple[Subject, FakeTensorMode]:
    """The subject, without memory, and the mode that its tensors belong to.

    A Layer or an Operator takes arrays, and a whole model is loaded with its weights: these exist for a moment.
    """
    by_layer = reference != FROZEN and load(reference).model is None
    subject = adapted(case, reference, "cpu" if case.whole or by_layer else "meta")
    mode = FakeTensorMode()
    make_fake(subject.module, mode)
    return subject, mode


def _inputs(case: Case, subject: Subject) -> Inputs:
    return subject.net.inputs(0) if case.whole else build(case).inputs(0)


def _step(case: Case, subject: Subject, inputs: Inputs) -> Step:
    dy: Tensor | None = None
    if not case.whole:
        with torch.no_grad():
            dy = torch.ones_like(subject.call(inputs))
    stepped = case.whole and case.mode is Mode.STEP and bool(subject.trainable)
    optimiser = torch.optim.AdamW(subject.trainable, lr=1e-4, fused=True) if stepped else None
    return take(subject.module, subject.call, inputs, dy, optimiser)
