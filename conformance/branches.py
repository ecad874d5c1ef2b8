"""A plain torch model with awkward names: parallel linear layers on one input, so that each answers for itself."""

from __future__ import annotations

import torch
from torch import nn

from lora_ref.targets import matches

# Names that are suffixes, prefixes and parts of each other, and parents that differ by one digit.
PATHS = ("q_proj", "my_q_proj", "q_proj_2", "proj", "proj_drop", "out", "A", "layers.1.q_proj", "layers.11.q_proj",
         "layers.1.proj", "layers.1.deep.proj")  # fmt: skip
WIDTH = 4


class Branches(nn.Module):
    """x (..., 4) -> {path: W_path x}; the linear modules sit at ``PATHS``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for path in PATHS:
            *parents, last = path.split(".")
            node: nn.Module = self
            for name in parents:
                if not hasattr(node, name):
                    node.add_module(name, nn.Module())
                node = node.get_submodule(name)
            node.add_module(last, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for path in PATHS:
            found[path] = self.get_submodule(path)(x)
        return found


def expected_paths(targets: tuple[str, ...]) -> list[str]:
    return [path for path in PATHS if any(matches(target, path) for target in targets)]
