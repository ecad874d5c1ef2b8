"""Make a model that PEFT adapted faster, in place: ``accelerate(model)``; undone by ``undo`` or at the end of a with.

PEFT's linear LoRA layers become ``lora_ref.fused.peft_linear.FusedLinear``: the same objects, parameters and paths,
with another forward. Feed-forward blocks around them are computed as one (see ``lora_ref.fused.blocks``). Everything
that PEFT does to a layer works as before, and what the fused functions do not serve is computed by PEFT's own forward,
call by call. Layers that are added later are left as they are: call it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from lora_ref.errors import LoraError
from lora_ref.fused.blocks import fuse_blocks, release_blocks


@dataclass(frozen=True)
class Accelerated:
    """What became of the model's LoRA layers.

    fused: the paths of those that the fused functions compute.
    blocks: the paths of the feed-forward blocks that are computed as one.
    left: of all other layers, why PEFT's own forward serves them; if that may pass, as a merge does, no longer than
        it lasts.
    """

    model: nn.Module
    fused: tuple[str, ...]
    blocks: tuple[str, ...]
    left: dict[str, str]

    def undo(self) -> None:
        """Give every layer of the model its own class again, and every block its forward."""
        from peft.tuners.lora.layer import Linear

        from lora_ref.fused.peft_linear import FusedLinear

        for module in self.model.modules():
            if type(module) is FusedLinear:
                module.__class__ = Linear
        release_blocks(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        count = len(self.fused) + len(self.left)
        lines = [f"{len(self.fused)} of {count} LoRA layers and {len(self.blocks)} feed-forward blocks are fused"]
        return "\n".join(lines + [f"  {path}: left to PEFT, as {why}" for path, why in self.left.items()])


def accelerate(model: Any) -> Accelerated:
    """Let the fused functions compute the LoRA layers of a model that PEFT adapted; the model is changed in place.

    Raises:
        LoraError: the model has no LoRA layer of PEFT.
        ImportError: peft is not installed.
    """
    from peft.tuners.lora.layer import Linear, LoraLayer

    from lora_ref.fused.peft_linear import FusedLinear, obstacle, present

    fused, left = [], {}
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if type(module) is Linear and "forward" not in vars(module):
            module.__class__ = FusedLinear
        if type(module) is FusedLinear:
            why = obstacle(module, present(module, module.active_adapters))
        else:
            why = f"a {type(module).__name__} is no plain linear layer, or its forward was replaced"
        if why:
            left[path] = why
        else:
            fused.append(path)
    if not fused and not left:
        raise LoraError("there is no LoRA layer of PEFT in this model; adapt it first, with get_peft_model")
    return Accelerated(model, tuple(fused), tuple(fuse_blocks(model)), left)
