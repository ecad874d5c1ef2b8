"""A backend on the net of a case: what is called, what is trained, what can be merged and switched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.nets import Inputs, Net, build
from bench.record import FROZEN
from conformance.contract import Backend, Feature, ModelHandle, Weights, dtype_of
from conformance.discovery import load
from conformance.torch_arrays import to_torch
from lora_ref.geometry import Linear

_FACTOR_STD = 0.02  # of the entries of A and B: no delta that is measured is zero


class UnsupportedError(Exception):
    """The backend does not offer what the case needs; the message says what."""


@dataclass
class Subject:
    """``call(inputs)`` gives y, or the loss of a whole model. ``factors`` are the A and B of each adapted path."""

    net: Net
    module: nn.Module
    call: Callable[[Inputs], Tensor]
    handle: ModelHandle | None = None
    backend: Backend | None = None
    factors: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def require(self, feature: Feature) -> ModelHandle:
        """The handle, of a backend that claims the feature.

        Raises:
            UnsupportedError: it does not.
        """
        if self.handle is None or self.backend is None or feature not in self.backend.manifest.features:
            raise UnsupportedError(f"needs the Model facet and the feature {feature.value}")
        return self.handle


def adapted(case: Case, reference: str, device: str = "cpu") -> Subject:
    """The backend on a fresh net, with factors that are not zero; ``frozen`` is the net as it is.

    Raises:
        UnsupportedError: the backend has no facet that serves the case.
        UsageError, LoadError: there is no such backend, or it cannot be imported.
    """
    net = build(case, device)
    if reference == FROZEN:
        if case.whole:  # as under adapters, gradients run down to the first layer
            net.module.get_input_embeddings().register_forward_hook(lambda _m, _i, y: y.requires_grad_())  # type: ignore[operator]
        return Subject(net, net.module, _call(net, net.module))
    backend = load(reference)
    if case.base_dtype not in backend.manifest.dtypes:
        raise UnsupportedError(f"serves {', '.join(backend.manifest.dtypes)}, not {case.base_dtype}")
    if case.adapter_dtype != case.base_dtype and Feature.MIXED_DTYPE not in backend.manifest.features:
        raise UnsupportedError("does not claim adapters of another dtype than the base")
    if case.dropout and Feature.DROPOUT not in backend.manifest.features:
        raise UnsupportedError("does not claim dropout")
    if backend.model is not None:
        return _by_model(case, backend, net)
    if not case.single:
        raise UnsupportedError("has no Model facet: only single layers can be measured")
    return _by_layer(case, backend, net, device)


def _by_model(case: Case, backend: Backend, net: Net) -> Subject:
    assert backend.model is not None
    handle = backend.model.attach(net.module, replace(case.spec, targets=net.targets))
    factors = {path: handle.factors(path) for path in handle.sites()}
    dtype = getattr(torch, case.adapter_dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in factors.values():
            for factor in pair:
                if factor.dtype != dtype:
                    factor.data = factor.data.to(dtype)
                factor.copy_(torch.randn(factor.shape, generator=generator) * _FACTOR_STD)
    module = handle.module
    if case.single:
        module = handle.sites()[net.targets[0]]  # the layer itself, without the wrappers of a model
    return Subject(net, module, _call(net, module), handle, backend, factors)


def _by_layer(case: Case, backend: Backend, net: Net, device: str) -> Subject:
    """A torch Layer, or a torch function as Operator: what their numpy contract wraps is called directly."""
    weights = layer_weights(case, net)
    if backend.layer is not None:
        handle = backend.layer.attach(case.spec, weights)
        root = getattr(handle, "root", None)
        if not isinstance(root, nn.Module):
            raise UnsupportedError("its Layer is no torch module (see conformance.torch_layer)")
        for parameter in root.parameters():
            parameter.data = parameter.data.clone().to(device)  # out of the guarded memory of the suite
        layer: Any = root.layer
        kind: Any = handle.kind  # type: ignore[attr-defined]
        return Subject(net, layer, _call(net, layer), None, backend, {case.module: kind.factors(layer, "default")})
    function = getattr(backend.operator, "function", None)
    if function is None:
        raise UnsupportedError("has no torch code that could be timed: a Model, a TorchLayer or a torch_operator")
    module = _Applied(function, net.module.get_parameter(f"{case.module}.weight"), weights, case.spec.scaling)
    module = module.to(device)
    return Subject(net, module, _call(net, module), None, backend, {case.module: (module.a, module.b)})


class _Applied(nn.Module):
    """A function y = f(x, w, bias, a, b, scaling) with its tensors."""

    def __init__(self, function: Any, w: nn.Parameter, weights: Weights, scaling: float) -> None:
        super().__init__()
        assert weights.a is not None
        assert weights.b is not None
        self.function, self.scaling, self.w = function, scaling, w
        self.a, self.b = (nn.Parameter(to_torch(v).clone()) for v in (weights.a, weights.b))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w, None, self.a, self.b, self.scaling)  # type: ignore[no-any-return]


def layer_weights(case: Case, net: Net, *, factors: bool = True) -> Weights:
    """The net's own weight, and A and B drawn from a seed, as arrays of the contract."""
    from conformance.torch_arrays import to_numpy

    rng = np.random.default_rng(1)
    shapes = ((case.rank, case.in_features), (case.out_features, case.rank))
    dtype = dtype_of(case.adapter_dtype)
    a, b = ((rng.standard_normal(s) * _FACTOR_STD).astype(dtype) for s in shapes) if factors else (None, None)
    w = to_numpy(net.module.get_parameter(f"{case.module}.weight"))
    return Weights(Linear(case.in_features, case.out_features), w, None, a, b, case.adapter_dtype)


def _call(net: Net, module: nn.Module) -> Callable[[Inputs], Tensor]:
    module.train()
    if net.loss is not None:
        loss = net.loss
        return lambda inputs: loss(module(**inputs))
    return lambda inputs: module(inputs["x"])


def serving(case: Case, reference: str, device: str = "cpu") -> Callable[[Tensor, Sequence[int]], Tensor]:
    """The backend ready to serve a batch of n adapters: a function of x (rows, in) and the rows' indices.

    Raises:
        UnsupportedError: no Batch facet, or one that is no torch code.
    """
    net = build(case, device)
    if reference == FROZEN:
        linear = net.module.get_submodule(case.module)
        return lambda x, _index: linear(x)
    backend = load(reference)
    batch: Any = backend.batch
    if not hasattr(batch, "prepare"):
        raise UnsupportedError("has no Batch facet in torch (see conformance.torch_batch)")
    if device != "cpu":
        raise UnsupportedError("the Batch facet takes its arrays from a CPU")
    weights = layer_weights(case, net, factors=False)
    rng = np.random.default_rng(1)
    dtype = dtype_of(case.adapter_dtype)
    pairs = [
        tuple(
            (rng.standard_normal(s) * _FACTOR_STD).astype(dtype)
            for s in ((case.rank, case.in_features), (case.out_features, case.rank))
        )
        for _ in range(case.n_adapters)
    ]
    return batch.prepare(case.spec, weights, pairs)  # type: ignore[no-any-return]


def index(case: Case) -> list[int]:
    """Which adapter serves each row: one for all, each its own in turn, uniform, or by Zipf's law with exponent 1.5."""
    rng, n, rows = np.random.default_rng(2), case.n_adapters, case.batch
    if case.adapter_mix == "same":
        return [0] * rows
    if case.adapter_mix == "different":
        return [row % n for row in range(rows)]
    law = 1.0 / np.arange(1, n + 1) ** 1.5 if case.adapter_mix == "zipf" else np.ones(n)
    return [int(i) for i in rng.choice(n, size=rows, p=law / law.sum())]
