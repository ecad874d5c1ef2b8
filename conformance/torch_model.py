"""Model handles for torch libraries: subclass ``TorchModelHandle``, say where the adapted modules and A, B are."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import nn

from lora_ref.spec import LoraSpec


class TorchModelHandle(ABC):
    """See ``conformance.contract.ModelHandle``. ``module`` is what a user calls and trains."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @abstractmethod
    def sites(self) -> Mapping[str, nn.Module]: ...

    @abstractmethod
    def factors(self, path: str, adapter: str = "default") -> tuple[torch.Tensor, torch.Tensor]: ...

    @abstractmethod
    def base_tensors(self) -> Mapping[str, torch.Tensor]: ...

    @abstractmethod
    def spec_at(self, path: str, adapter: str = "default") -> tuple[int, float]: ...

    def add(self, adapter: str, spec: LoraSpec) -> None:
        raise NotImplementedError

    def activate(self, *adapters: str) -> None:
        raise NotImplementedError

    def delete(self, adapter: str) -> None:
        raise NotImplementedError

    def enable(self, on: bool) -> None:  # noqa: FBT001
        raise NotImplementedError

    def merge(self) -> None:
        raise NotImplementedError

    def unmerge(self) -> None:
        raise NotImplementedError

    def weight(self, path: str) -> torch.Tensor:
        raise NotImplementedError

    def copy(self, *, pickled: bool) -> Self:
        """The handle and all that it holds, each thing once: the module is copied as a user copies it."""
        return pickle.loads(pickle.dumps(self)) if pickled else copy.deepcopy(self)  # noqa: S301
