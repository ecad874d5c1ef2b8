"""One adapted torch layer as the contract's Handle: arrays in and out, whatever the library."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from conformance.contract import Array, Grads, How, Tensor, Weights
from conformance.guards import given_back
from conformance.saved import saved_bytes
from conformance.torch_arrays import to_numpy, to_torch, torch_dtype
from conformance.torch_ways import Compiled, run
from lora_ref.spec import LoraSpec

if TYPE_CHECKING:
    from conformance.torch_layer import Root, TorchLayer


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
