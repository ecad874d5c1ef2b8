"""What is timed in each mode: an untimed ``setup`` that makes things fresh, and the ``run`` between two readings."""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, Mode
from bench.nets import Inputs, build
from bench.record import FROZEN
from bench.subject import Subject, UnsupportedError, adapted, index, serving
from conformance.contract import Feature

_INPUTS = 4  # drawn beforehand; each call takes the next one as a fresh leaf


@dataclass
class Operation:
    """``run(setup())`` is one sample. The result is kept until the next setup, so that freeing it is not timed."""

    setup: Callable[[], Any]
    run: Callable[[Any], Any]
    subject: Subject | None = None
    warm: bool = False  # it has been called before


@lru_cache(maxsize=4)
def ready(case: Case, reference: str, device: str) -> Operation:
    """As ``make``; the operations of the latest cases are kept, as backends take turns on them."""
    return make(case, reference, device)


def make(case: Case, reference: str, device: str = "cpu") -> Operation:
    """The case on a backend.

    Raises:
        UnsupportedError: the backend does not offer it.
    """
    if case.mode is Mode.MIXED:
        return _mixed(case, reference, device)
    subject = adapted(case, reference, device)
    if case.compile:
        torch.compiler.reset()  # all cases share one function, of which torch compiles eight forms and then no more
        subject.call = torch.compile(subject.call)
    makers = {Mode.MERGE: _merge, Mode.LOAD: _load, Mode.SWITCH: _switch}
    if case.mode in makers:
        if reference == FROZEN:
            raise UnsupportedError("there is no adapter")
        return makers[case.mode](case, subject)
    return _Training(case, subject, device).operation()


class _Training:
    """Forward, backward and step. Gradients of the factors start from None in every sample."""

    def __init__(self, case: Case, subject: Subject, device: str) -> None:
        self.case, self.subject, self.calls = case, subject, 0
        self.pool = [subject.net.inputs(seed) for seed in range(_INPUTS)]
        self.dy: Tensor | None = None
        self.kept: Any = None
        if subject.net.loss is None:
            with torch.no_grad():
                y = subject.module(self.pool[0]["x"])
            self.dy = torch.randn(y.shape, generator=torch.Generator(device).manual_seed(9), device=device).to(y.dtype)
        trained = case.whole and case.mode is Mode.STEP and bool(subject.trainable)
        self.optimiser = torch.optim.AdamW(subject.trainable, lr=1e-4) if trained else None

    def operation(self) -> Operation:
        if self.case.mode is Mode.BACKWARD:
            return Operation(self._recorded, self._backward, self.subject)
        return Operation(self._fresh, self._forward if self.case.mode is Mode.FORWARD else self._step, self.subject)

    def _fresh(self) -> Inputs:
        self.kept = None
        for parameter in self.subject.trainable:
            parameter.grad = None
        self.calls += 1
        inputs = self.pool[self.calls % _INPUTS]
        return {k: v.detach().requires_grad_(v.requires_grad) for k, v in inputs.items()}

    def _recorded(self) -> Tensor:
        y = self.subject.call(self._fresh())
        if not y.requires_grad:
            raise UnsupportedError("nothing in it is trained: there is no backward")
        return y

    def _forward(self, inputs: Inputs) -> Tensor:
        self.kept = self.subject.call(inputs)
        return self.kept  # type: ignore[no-any-return]

    def _backward(self, y: Tensor) -> None:
        torch.autograd.backward(y, self.dy)

    def _step(self, inputs: Inputs) -> None:
        y = self.subject.call(inputs)
        if y.requires_grad:
            torch.autograd.backward(y, self.dy)
        if self.optimiser is not None:
            self.optimiser.step()


def _merge(_case: Case, subject: Subject) -> Operation:
    handle = subject.require(Feature.UNMERGE)
    merged = False

    def setup() -> None:
        nonlocal merged
        if merged:
            handle.unmerge()
        merged = True

    return Operation(setup, lambda _: handle.merge(), subject)


def _load(case: Case, subject: Subject) -> Operation:
    """The adapter from its files, which the system has in its cache: onto a fresh model, or beside n - 1 others."""
    handle, backend = subject.require(Feature.PEFT_LAYOUT), subject.backend
    if backend is None or backend.store is None:
        raise UnsupportedError("has no Store facet")
    store, folder = backend.store, Path(tempfile.mkdtemp(prefix="lora-bench-"))
    weakref.finalize(subject, shutil.rmtree, folder)
    store.dump(handle, folder)
    if case.n_adapters > 1:
        return _load_beside(case, subject, lambda name: store.add(handle, folder, name))
    base = build(case).module
    return Operation(lambda: copy.deepcopy(base), lambda onto: store.load(onto, folder), subject)


def _load_beside(case: Case, subject: Subject, load: Callable[[str], None]) -> Operation:
    """The last of n adapters; the one that was loaded before is deleted first."""
    handle = subject.require(Feature.LOAD_BESIDE)
    subject.require(Feature.DELETE)
    *others, last = (f"adapter{nth}" for nth in range(1, case.n_adapters))
    for name in others:
        load(name)
    loaded = False

    def setup() -> str:
        nonlocal loaded
        if loaded:
            handle.delete(last)
        loaded = False
        return last

    def run(name: str) -> None:
        nonlocal loaded
        load(name)
        loaded = True

    return Operation(setup, run, subject)


def _switch(case: Case, subject: Subject) -> Operation:
    handle = subject.require(Feature.MULTI_ADAPTER)
    names = ["default", *(f"adapter{nth}" for nth in range(1, case.n_adapters))]
    for name in names[1:]:
        handle.add(name, replace(case.spec, targets=subject.net.targets))
    calls = 0

    def setup() -> str:
        nonlocal calls
        calls += 1
        return names[calls % len(names)]

    return Operation(setup, handle.activate, subject)


def _mixed(case: Case, reference: str, device: str) -> Operation:
    serve, rows = serving(case, reference, device), index(case)
    generator = torch.Generator(device).manual_seed(3)
    x = torch.randn(case.batch, case.in_features, generator=generator, device=device)
    x = x.to(getattr(torch, case.base_dtype))  # (rows, in)

    def run(_: Any) -> Tensor:
        with torch.no_grad():
            return serve(x, rows)

    return Operation(lambda: None, run)
