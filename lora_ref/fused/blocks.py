"""Whole feed-forward blocks in a model, found and computed by ``lora_ref.fused.mlp``.

A module is such a block if its forward is down(act(gate(x)) * up(x)) or down(act(up(x))) and nothing else, whatever its
class and its children are called: that is read off the graph that ``torch.fx`` traces. The module keeps its class and
gets a forward of its own, which looks at the state of its layers at each call, and goes back to the class's forward
where one of them must be called itself.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, fx, nn

from lora_ref.fused.feedforward import Activation, mlp
from lora_ref.fused.served import Served, is_bare, is_frozen_product
from lora_ref.fused.stack import Projection


class Block(NamedTuple):
    """The paths of the layers within the module."""

    gate: str | None
    up: str
    down: str
    activation: Activation


def fuse_blocks(model: nn.Module) -> list[str]:
    """Let every block that has a fused LoRA layer be computed as one; the paths of all that are."""
    found = []
    for path, module in model.named_modules():
        if is_bare(module) and _may_be(module) and (block := recognise(module)) is not None:
            module.forward = partial(_forward, module, block)
        if is_block(module):
            found.append(path)
    return found


def release_blocks(model: nn.Module) -> None:
    """Give every block its class's forward again."""
    for module in model.modules():
        if is_block(module):
            del module.forward


def is_block(module: nn.Module) -> bool:
    own = vars(module).get("forward")
    return isinstance(own, partial) and own.func is _forward


def recognise(module: nn.Module) -> Block | None:
    """The block that the module is, in training and out of it, or None."""
    was, found = module.training, set()
    for mode in (False, True):
        module.training = mode
        try:
            found.add(_match(_Tracer().trace(module)))
        except Exception:  # noqa: BLE001 (whatever foreign code raises when it is handed symbols: it is no such block)
            found.add(None)
        finally:
            module.training = was
    return found.pop() if len(found) == 1 else None


def _forward(module: nn.Module, block: Block, *args: Tensor, **kwargs: Tensor) -> Tensor:
    layers = [_served(module.get_submodule(name)) for name in block[:3] if name is not None]
    served = [layer for layer in layers if layer is not None and layer.m is None]
    masks = {layer.dropout for layer in served if layer.projection.a is not None}
    if len(served) < len(layers) or len(masks) != 1:
        y: Tensor = type(module).forward(module, *args, **kwargs)
        return y
    *gate, up, down = (layer.projection for layer in served)
    (x,) = (*args, *kwargs.values())
    return mlp(x, gate[0] if gate else None, up, down, block.activation, dropout=masks.pop())


def _served(layer: Any) -> Served | None:
    """What a layer of a block computes, with an adapter or without; None where it must be called to find out."""
    if not is_bare(layer):
        return None
    if hasattr(layer, "served"):
        found: Served | None = layer.served()
        return found
    plain = type(layer) is nn.Linear and is_frozen_product(layer)
    return Served(Projection(layer.weight, layer.bias)) if plain else None


def _is_layer(module: nn.Module) -> bool:
    return hasattr(module, "served") or type(module) is nn.Linear


def _may_be(module: nn.Module) -> bool:
    """Two or three linear layers, one of them adapted: nothing else is worth a trace."""
    layers = [child for child in module.children() if _is_layer(child)]
    return 2 <= len(layers) <= 3 and any(hasattr(layer, "served") for layer in layers)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 (torch's signature)
        return _is_layer(m)


def _match(graph: fx.Graph) -> Block | None:
    """Read from the output backwards; every node of the graph must have its place."""
    x, *_, output = graph.nodes
    down = output.args[0]
    z = down.args[0]
    up, act = None, z
    if z.op == "call_function" and z.target is operator.mul:
        act, up = z.args if _activation(z.args[0]) else reversed(z.args)
    first = act.args[0]
    inner = [first] if up is None else [first, up]
    kind, places = _activation(act), {x, first, up, act, z, down, output} - {None}
    layers = [*((layer, x) for layer in inner), (down, z)]
    if kind is None or len(places) != len(graph.nodes) or not all(_is_call(*each) for each in layers):
        return None
    return Block(first.target if up is not None else None, inner[-1].target, down.target, kind)


def _is_call(layer: fx.Node, given: fx.Node) -> bool:
    return layer.op == "call_module" and layer.args == (given,) and not layer.kwargs


def _activation(node: Any) -> Activation | None:
    if node.op != "call_function" or len(node.args) != 1:
        return None
    kinds: dict[Any, dict[Any, Activation]] = {
        F.silu: {None: "silu", ("inplace", False): "silu"},
        F.gelu: {None: "gelu", ("approximate", "none"): "gelu", ("approximate", "tanh"): "gelu_tanh"},
    }
    options = [*node.kwargs.items()] or [None]
    return kinds.get(node.target, {}).get(options[0]) if len(options) == 1 else None
