"""All of an adapted model that an operation must leave as it is, held before and compared afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conformance.contract import Array, Feature, ModelHandle
from conformance.subject import Subject
from conformance.torch_arrays import to_numpy
from conformance.violation import must


@dataclass(frozen=True)
class _Held:
    """A factor: its bits, its dtype and device, the memory that an optimiser has, and whether it asks for gradients."""

    value: Array
    place: tuple[torch.dtype, torch.device]
    address: int
    trainable: bool

    @classmethod
    def of(cls, factor: Tensor) -> _Held:
        return cls(to_numpy(factor), (factor.dtype, factor.device), factor.data_ptr(), factor.requires_grad)


class State:
    """The adapters with these paths, the base, the weights in use and the mode."""

    def __init__(self, subject: Subject, handle: ModelHandle, adapters: Mapping[str, Iterable[str]]) -> None:
        self.subject, self.handle = subject, handle
        places = [(path, name) for name, paths in adapters.items() for path in paths]
        self.laws = {place: handle.spec_at(*place) for place in places}
        self.factors = {place: [_Held.of(factor) for factor in handle.factors(*place)] for place in places}
        self.base = {name: (to_numpy(t), t.requires_grad) for name, t in handle.base_tensors().items()}
        merging = subject.has(Feature.MERGE)
        self.weights = {path: to_numpy(handle.weight(path)) for path, _ in places if merging}
        self.mode = self._modes()

    def must_hold(self, after: str) -> None:
        """Everything has the bits, the memory and the flags that it had.

        Raises:
            Violation: something has not.
        """
        same = self.subject.judge.same
        must(self._modes() == self.mode, f"training mode {after}", self.mode, self._modes())
        for (path, name), held in self.factors.items():
            for which, before, live in zip("AB", held, self.handle.factors(path, name), strict=True):
                self._must_be(before, _Held.of(live), f"{which} of {name!r} at {path} {after}")
            law, now = self.laws[path, name], self.handle.spec_at(path, name)
            must(now == law, f"rank and scaling of {name!r} at {path} {after}", law, now)
        tensors = self.handle.base_tensors()
        for name, (value, trainable) in self.base.items():
            must(name in tensors, f"base tensor {name} {after}", "it is there", "it is gone")
            same(f"base tensor {name} {after}", to_numpy(tensors[name]), value)
            asks = tensors[name].requires_grad
            must(asks == trainable, f"base tensor {name} asks for gradients {after}", trainable, asks)
        for path, weight in self.weights.items():
            same(f"weight that is used at {path} {after}", to_numpy(self.handle.weight(path)), weight)

    def _must_be(self, before: _Held, now: _Held, what: str) -> None:
        must(now.place == before.place, f"dtype and device of {what}", before.place, now.place)
        self.subject.judge.same(what, now.value, before.value)
        must(now.trainable == before.trainable, f"{what} asks for gradients", before.trainable, now.trainable)
        must(now.address == before.address, f"memory of {what}", "where it was, as an optimiser has it", "another")

    def _modes(self) -> set[bool]:
        """Of the model and of every site, also of one that is new."""
        return {self.handle.module.training, *(site.training for site in self.handle.sites().values())}
