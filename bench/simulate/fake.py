"""A model without memory: parameters and buffers that have a shape, a dtype and a device, and no values.

A model is built and adapted on torch's meta device, or for real where a backend needs values to start from, and only
then made fake: under ``FakeTensorMode`` itself ``Module.to`` fails on what has just been made (torch 2.13: "Cannot swap
t1 because it has weakref associated with it"), and PEFT calls it for each adapter. Fake tensors say that they are on
the CPU whatever the real ones will be on: a fake CUDA tensor ends a process whose torch has no CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor, device, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def make_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of all parameters and buffers, in place; what was tied stays tied.

    Call it outside the mode. No values are left, not even those of rotary frequencies.
    """
    made: dict[Tensor, Tensor] = {}  # tensors hash by identity

    def fake(tensor: Tensor) -> Tensor:
        if tensor not in made:
            hollow = FakeTensor(mode, tensor.detach().to("meta"), device("cpu"))
            parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(hollow, tensor.requires_grad) if parameter else hollow
        return made[tensor]

    for part in module.modules():
        owned: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, vars(part))  # noqa: SLF001 - past the checks of a setter
        for tensors in owned:
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor):
                    tensors[name] = fake(tensor)


@contextmanager
def faking(mode: FakeTensorMode) -> Iterator[None]:
    """Enter the mode, and answer the one question that transformers asks of values: are these rows packed sequences?

    They are not. Left to itself it cannot tell from fake positions and builds a mask of (batch, 1, seq, seq), which a
    real run does without.
    """
    masking = sys.modules.get("transformers.masking_utils")
    asked = getattr(masking, "find_packed_sequence_indices", None)
    if asked is None:
        with mode:
            yield
        return

    def find_packed_sequence_indices(position_ids: Tensor) -> None:
        asked(position_ids)  # its operations count

    with mode, patch.object(masking, "find_packed_sequence_indices", find_packed_sequence_indices):
        yield
