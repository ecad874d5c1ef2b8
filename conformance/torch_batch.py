"""A Batch for torch implementations: subclass ``TorchBatch`` and say how a layer and its adapters are made ready."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from conformance.contract import Array, Weights
from conformance.guards import given_back
from conformance.torch_arrays import to_numpy, to_torch
from lora_ref.spec import LoraSpec

Serve = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


class TorchBatch(ABC):
    """See ``conformance.contract.Batch``. What is prepared once and called often is what a benchmark times."""

    @abstractmethod
    def prepare(self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]]) -> Serve:
        """A function of x (rows, in) and the rows' indices that gives y (rows, out)."""

    def forward(
        self, spec: LoraSpec, weights: Weights, adapters: Sequence[tuple[Array, Array]], x: Array, index: Sequence[int]
    ) -> Array:
        serve = self.prepare(spec, weights, adapters)
        with torch.no_grad():
            return to_numpy(given_back(serve(to_torch(x), index)))
