"""A Layer for torch implementations: subclass ``TorchLayer``, say how to adapt a module and where A and B are."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from conformance.contract import Weights
from conformance.guards import placed
from conformance.torch_arrays import to_torch
from conformance.torch_handle import TorchHandle
from conformance.torch_quantised import QuantisedLinear
from lora_ref.convolution import Conv
from lora_ref.expert_stack import ExpertStack
from lora_ref.experts import Experts
from lora_ref.geometry import Embedding, Linear
from lora_ref.spec import LoraSpec


class Conv1D(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's; stands in where transformers is not installed."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight)  # (M, nf)
        return y.reshape(*x.shape[:-1], self.nf)


class Root(nn.Module):
    """The user's model around the layer: mode switches reach the layer through it, as they do in life."""

    layer: Any  # the base module, and then what the backend makes of it

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        assert isinstance(y, torch.Tensor)
        return y


class TorchLayer(ABC):
    """``adapt`` and ``factors`` are required; the others are needed only for the features that they belong to.

    What reads is handed the adapted module that sits at ``root.layer``; what changes something is handed the root.
    """

    conv1d: type[nn.Module] = Conv1D

    @abstractmethod
    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        """Put LoRA on ``root.layer``, which holds the base weights; do not fill in A and B."""

    @abstractmethod
    def factors(self, layer: nn.Module, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """The live parameters A and B."""

    def magnitude(self, layer: nn.Module, adapter: str) -> nn.Parameter:
        """The live parameter m of a DoRA adapter."""
        raise NotImplementedError

    def view_a(self, a: torch.Tensor) -> torch.Tensor:
        """Parameter (or its gradient) -> A in the contract's orientation; a view."""
        return a

    def view_b(self, b: torch.Tensor) -> torch.Tensor:
        return b

    def base(self, layer: nn.Module) -> nn.Module:
        """The module that holds the frozen weight and bias."""
        base = layer.base
        assert isinstance(base, nn.Module)
        return base

    def weight(self, layer: nn.Module) -> torch.Tensor:
        base = self.base(layer)
        weight = base.dequantized_weight() if isinstance(base, QuantisedLinear) else base.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def merge(self, root: Root) -> None:
        root.layer.merge()

    def unmerge(self, root: Root) -> None:
        root.layer.unmerge()

    def enable(self, root: Root, on: bool) -> None:  # noqa: FBT001
        raise NotImplementedError

    def add(self, root: Root, adapter: str, spec: LoraSpec, dtype: torch.dtype) -> None:
        raise NotImplementedError

    def activate(self, root: Root, *adapters: str) -> None:
        raise NotImplementedError

    def delete(self, root: Root, adapter: str) -> None:
        raise NotImplementedError

    def set_scale(self, root: Root, factor: float, adapter: str) -> None:
        raise NotImplementedError

    def combine(self, root: Root, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        raise NotImplementedError

    def initialise(self, root: Root) -> None:
        """Give A and B their initial values, after ``to_empty`` gave them memory."""
        raise NotImplementedError

    def copy(self, root: Root, *, pickled: bool) -> Root:
        """As a user copies a module."""
        return pickle.loads(pickle.dumps(root)) if pickled else copy.deepcopy(root)  # noqa: S301

    def attach(self, spec: LoraSpec, weights: Weights) -> TorchHandle:
        torch.manual_seed(weights.seed)
        root = Root(self.base_module(weights))
        self.adapt(root, spec, weights)
        handle = TorchHandle(self, root, weights, dora=spec.dora)
        if weights.a is not None and weights.b is not None:
            handle.write(weights.a, weights.b, m=weights.m)
        for name, parameter in root.named_parameters():
            parameter.data = placed(parameter.data, name, gaps=False)
        return handle

    def materialise(self, spec: LoraSpec, weights: Weights) -> TorchHandle:
        base = self.base_module(weights)
        with torch.device("meta"):
            root = Root(copy.deepcopy(base).to("meta"))
            self.adapt(root, spec, weights)
        root.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*root.parameters(), *root.buffers()):
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
            for name, value in base.named_parameters():
                getattr(self.base(root.layer), name).copy_(value)
        torch.manual_seed(weights.seed)
        self.initialise(root)
        return TorchHandle(self, root, weights, dora=spec.dora)

    def base_module(self, weights: Weights) -> nn.Module:
        """The plain torch layer with the case's weight and bias, or the quantised one that it asks for."""
        if weights.bits:
            return QuantisedLinear(weights.w, weights.bias, weights.bits)
        module = _empty_module(weights, self.conv1d).to(to_torch(weights.w).dtype)
        with torch.no_grad():
            module.weight.copy_(to_torch(weights.w))  # type: ignore[operator]
            if weights.bias is not None:
                module.bias.copy_(to_torch(weights.bias))  # type: ignore[operator]
        return module


def _empty_module(weights: Weights, conv1d: type[nn.Module]) -> nn.Module:
    g, bias = weights.geometry, weights.bias is not None
    if isinstance(g, Embedding):
        return nn.Embedding(g.num_embeddings, g.out_features, padding_idx=g.padding_idx)
    if isinstance(g, Conv):
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(g.kernel) - 1]
        window = (g.kernel, g.stride, g.padding, g.dilation)
        return make(g.in_channels, g.out_features, *window, g.groups, bias=bias, padding_mode=g.padding_mode)  # type: ignore[arg-type]
    if isinstance(g, Experts):
        stack = ExpertStack(g.experts, g.in_features, g.out_features)
        stack.index = torch.tensor(g.index, dtype=torch.int64)
        return stack
    if isinstance(g, Linear) and g.transposed:
        return conv1d(g.out_features, g.in_features)
    fan_in, fan_out = (g.weight_shape[1], g.weight_shape[0])
    return nn.Linear(fan_in, fan_out, bias=bias)
