"""A Layer for torch implementations: subclass ``TorchLayer``, say how to adapt a module and where A and B are."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from conformance.contract import Array, Grads, How, Tensor, Weights
from conformance.guards import given_back, placed
from conformance.saved import saved_bytes
from conformance.torch_arrays import to_numpy, to_torch, torch_dtype
from conformance.torch_quantised import QuantisedLinear
from conformance.torch_ways import Compiled, run
from lora_ref.convolution import Conv
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


class TorchHandle:
    """One adapted layer; see ``conformance.contract.Handle``."""

    def __init__(self, kind: TorchLayer, root: Root, weights: Weights, *, dora: bool = False) -> None:
        self.kind, self.root, self.geometry = kind, root, weights.geometry
        self.adapter_dtype = torch_dtype(weights.adapter_dtype)
        self.adapters = ["default"]
        self.dora = {"default"} if dora else set()
        self.optimiser: torch.optim.Optimizer | None = None
        self.compiled: Compiled | None = None

    @property
    def layer(self) -> Any:
        return self.root.layer

    def forward(self, x: Array, *, train: bool = False, seed: int = 0) -> Array:
        self.root.train(train)
        torch.manual_seed(seed)
        with torch.no_grad():
            return to_numpy(given_back(self.root(to_torch(x))))

    def vjp(self, x: Array, dy: Array, *, train: bool = False, seed: int = 0, how: How = How.PLAIN) -> Grads:
        self.root.train(train)
        torch.manual_seed(seed)
        self.root.zero_grad(set_to_none=True)
        x_leaf = to_torch(x).requires_grad_(self.geometry.differentiable)
        y = run(self._compiled().call if how is How.COMPILED else self.root, x_leaf, how)
        if y.requires_grad:
            torch.autograd.backward(y, to_torch(dy).to(y.dtype))
        a, b = self.kind.factors(self.layer, "default")
        m = self.kind.magnitude(self.layer, "default") if "default" in self.dora else None
        base = [
            (n, p) for n, p in self.kind.base(self.layer).named_parameters(recurse=False) if p is not a and p is not b
        ]
        return Grads(
            y=to_numpy(given_back(y)),
            dx=None if x_leaf.grad is None else to_numpy(given_back(x_leaf.grad)),
            da=None if a.grad is None else self._canonical(a.grad, "a"),
            db=None if b.grad is None else self._canonical(b.grad, "b"),
            base={name: to_numpy(p.grad) for name, p in base if p.grad is not None},
            dm=None if m is None or m.grad is None else to_numpy(m.grad).reshape(-1),
        )

    def compilations(self) -> int:
        return self._compiled().graphs

    def _compiled(self) -> Compiled:
        if self.compiled is None:
            self.compiled = Compiled(self.root)
        return self.compiled

    def tensors(self) -> Mapping[str, Tensor]:
        named: dict[str, Tensor] = {}
        known: set[int] = set()

        def put(name: str, tensor: torch.Tensor, value: Array) -> None:
            named[name] = Tensor(value, tensor.requires_grad)
            known.add(id(tensor))

        for adapter in self.adapters:
            a, b = self.kind.factors(self.layer, adapter)
            put(f"a:{adapter}", a, self._canonical(a, "a"))
            put(f"b:{adapter}", b, self._canonical(b, "b"))
            if adapter in self.dora:
                m = self.kind.magnitude(self.layer, adapter)
                put(f"m:{adapter}", m, to_numpy(m).reshape(-1))
        base = self.kind.base(self.layer)
        for name, p in (*base.named_parameters(recurse=False), *base.named_buffers(recurse=False)):
            if id(p) not in known:
                put(name, p, to_numpy(p))
        for name, p in self.root.named_parameters():
            if id(p) not in known:
                put(f"other:{name}", p, to_numpy(p))
        return named

    def write(self, a: Array, b: Array, adapter: str = "default", m: Array | None = None) -> None:
        live = self.kind.factors(self.layer, adapter)
        with torch.no_grad():
            if m is not None:
                magnitude = self.kind.magnitude(self.layer, adapter)
                magnitude.copy_(to_torch(m).reshape(magnitude.shape))
            for view, parameter, value in zip((self.kind.view_a, self.kind.view_b), live, (a, b), strict=True):
                target = view(parameter)
                target.copy_(to_torch(value).reshape(target.shape))

    def load(self, a: Array, b: Array, adapter: str = "default") -> None:
        live = self.kind.factors(self.layer, adapter)
        names = {id(parameter): name for name, parameter in self.root.named_parameters()}
        state: dict[str, torch.Tensor] = {}
        for view, old, value in zip((self.kind.view_a, self.kind.view_b), live, (a, b), strict=True):
            new = state[names[id(old)]] = torch.empty_like(old, requires_grad=False)
            view(new).copy_(to_torch(value).reshape(view(new).shape))
        self.root.load_state_dict(state, strict=False, assign=True)

    def step(self, x: Array, dy: Array, *, lr: float, weight_decay: float, train: bool = True) -> None:
        if self.optimiser is None:
            live = [p for p in self.root.parameters() if p.requires_grad]
            self.optimiser = torch.optim.SGD(live, lr=lr, weight_decay=weight_decay)
        self.root.train(train)
        self.optimiser.zero_grad()
        y = self.root(to_torch(x))
        y.backward(to_torch(dy).to(y.dtype))
        self.optimiser.step()

    def merge(self) -> None:
        self.kind.merge(self.root)

    def unmerge(self) -> None:
        self.kind.unmerge(self.root)

    def effective_weight(self) -> Array:
        return to_numpy(self.kind.weight(self.layer))

    def enable(self, on: bool) -> None:  # noqa: FBT001
        self.kind.enable(self.root, on)

    def add(self, adapter: str, spec: LoraSpec, a: Array, b: Array) -> None:
        self.kind.add(self.root, adapter, spec, self.adapter_dtype)
        self.adapters.append(adapter)
        self.write(a, b, adapter)

    def activate(self, *adapters: str) -> None:
        self.kind.activate(self.root, *adapters)

    def delete(self, adapter: str) -> None:
        self.kind.delete(self.root, adapter)
        self.adapters.remove(adapter)

    def set_scale(self, factor: float, adapter: str = "default") -> None:
        self.kind.set_scale(self.root, factor, adapter)

    def combine(self, name: str, adapters: Sequence[str], weights: Sequence[float]) -> None:
        self.kind.combine(self.root, name, adapters, weights)
        self.adapters.append(name)

    def copy(self, *, pickled: bool) -> TorchHandle:
        twin = copy.copy(self)
        twin.root = self.kind.copy(self.root, pickled=pickled)
        twin.adapters, twin.dora = [*self.adapters], {*self.dora}
        twin.optimiser = twin.compiled = None
        return twin

    def saved_bytes(self, x: Array, *, train: bool = False) -> int:
        self.root.train(train)
        leaf = to_torch(x).requires_grad_(self.geometry.differentiable)
        return saved_bytes(lambda: self.root(leaf), (*self.root.parameters(), *self.root.buffers()))

    def _canonical(self, tensor: torch.Tensor, factor: str) -> Array:
        view = self.kind.view_a if factor == "a" else self.kind.view_b
        return to_numpy(view(tensor.detach()))


def _empty_module(weights: Weights, conv1d: type[nn.Module]) -> nn.Module:
    g, bias = weights.geometry, weights.bias is not None
    if isinstance(g, Embedding):
        return nn.Embedding(g.num_embeddings, g.out_features, padding_idx=g.padding_idx)
    if isinstance(g, Conv):
        make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(g.kernel) - 1]
        window = (g.kernel, g.stride, g.padding, g.dilation)
        return make(g.in_channels, g.out_features, *window, g.groups, bias=bias, padding_mode=g.padding_mode)  # type: ignore[arg-type]
    if isinstance(g, Linear) and g.transposed:
        return conv1d(g.out_features, g.in_features)
    fan_in, fan_out = (g.weight_shape[1], g.weight_shape[0])
    return nn.Linear(fan_in, fan_out, bias=bias)
