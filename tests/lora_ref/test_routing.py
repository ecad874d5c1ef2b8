"""What routing refuses, and its gradients; its values are judged by the suite's own invariant."""

from __future__ import annotations

import pytest
import torch

from lora_ref import routing
from lora_ref.errors import LoraError


def adapters(*ranks: int) -> list[routing.Routed]:
    return [(torch.ones(r, 3), torch.ones(2, r), 1.0) for r in ranks]


@pytest.mark.parametrize("index", [[0], [0, 2], [0, -2]])
def test_an_index_must_name_an_adapter_for_each_row(index: list[int]) -> None:
    with pytest.raises(LoraError):
        routing.forward(torch.ones(2, 3), torch.ones(2, 3), None, adapters(1, 2), index)


def test_gradients_reach_the_adapters_that_served_a_row_and_no_other() -> None:
    served = adapters(1, 2)
    for a, b, _ in served:
        a.requires_grad_()
        b.requires_grad_()
    routing.forward(torch.ones(2, 3), torch.ones(2, 3), None, served, [1, -1]).sum().backward()
    assert not served[0][0].grad.any()
    assert served[1][0].grad.any()
