"""What is refused, in which words, and what works without Triton and without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lora_ref.errors import LoraError
from lora_ref.fused.kernels import Routing, Stacked, lora_linear, routed_linear


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": ones(3, 4)}, r"W \(6, 5\) does not fit x \(3, 4\)"),
        ({"a": ones(2, 4)}, r"A \(2, 4\), B \(6, 2\) do not fit"),
        ({"b": ones(5, 2)}, r"with out = 6"),
        ({"b": ones(6, 3)}, r"do not fit"),
        ({"bias": ones(5)}, r"bias \(5,\) of torch.float32 does not fit"),
        ({"bias": ones(6, dtype=torch.float16)}, r"of torch.float16 does not fit"),
        ({"x": ones(3, 5, dtype=torch.float16)}, "x is torch.float16 and the base torch.float32"),
        ({"x": ones(3, 5, dtype=torch.float64), "w": ones(6, 5, dtype=torch.float64)}, "must be the same of"),
        ({"a": ones(2, 5, dtype=torch.float16)}, "A is torch.float16 and B torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, torch.Tensor], words: str) -> None:
    given = {"x": ones(3, 5), "w": ones(6, 5), "bias": None, "a": ones(2, 5), "b": ones(6, 2)} | change
    with pytest.raises(LoraError, match=words):
        lora_linear(**given, scaling=1.0)


@pytest.mark.parametrize(("index", "words"), [([0, 2, 0], "no adapter 2; there are 2"), ([0, -2, 0], "no adapter -2")])
def test_an_index_must_name_an_adapter(index: list[int], words: str) -> None:
    with pytest.raises(LoraError, match=words):
        Routing.of(index, 2)
    with pytest.raises(LoraError, match=words):
        Routing.of(torch.tensor(index), 2)


def test_routing_and_adapters_must_fit_the_batch() -> None:
    one = Stacked.of([(ones(2, 5), ones(6, 2), 1.0)])
    with pytest.raises(LoraError, match="3 rows need as many indices, got 2"):
        routed_linear(ones(3, 5), ones(6, 5), None, one, Routing.of([0, 0], 1))
    with pytest.raises(LoraError, match="disagree in number: A 1, B 1, routing 2"):
        routed_linear(ones(3, 5), ones(6, 5), None, one, Routing.of([0, 0, 1], 2))
    with pytest.raises(LoraError, match="adapter 1 has"):
        Stacked.of([(ones(2, 5), ones(6, 2), 1.0), (ones(2, 4), ones(6, 2), 1.0)])
    with pytest.raises(LoraError, match="no adapters to stack"):
        Stacked.of([])


def test_no_operator_reads_beyond_its_operands(device: str) -> None:
    ops, some = torch.ops.lora_ref, torch.ones(3, 5, device=device)
    for call in (
        lambda: ops.shrink(some, torch.ones(2, 4, device=device), 1.0),
        lambda: ops.linear_expand(some, some, None, torch.ones(3, 3, device=device), torch.ones(3, 2, device=device)),
        lambda: ops.factor_gradient(some, torch.ones(4, 5, device=device), True),  # noqa: FBT003
    ):
        with pytest.raises(LoraError, match="an operand of shape"):
            call()


def test_grouping_is_stable_and_complete() -> None:
    routing = Routing.of([1, -1, 0, 1, -1, 1], 3)
    assert routing.order.tolist() == [1, 4, 2, 0, 3, 5]
    assert routing.starts.tolist() == [0, 2, 3, 6, 6]


_CALL = """
import sys
{before}
import torch
from lora_ref.errors import LoraError
from lora_ref.fused.kernels import lora_linear
one = torch.ones(1, 1)
print(torch.empty_like(one, device="meta").shape, torch.ops.lora_ref.lora_linear)
try:
    lora_linear(one, one, None, one, one, 1.0)
except LoraError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("sys.modules['triton'] = None", "Triton is not installed: pip install 'lora-conformance[triton]'"),
        ("", "need a GPU; on a CPU set TRITON_INTERPRET=1 before Python starts"),
    ],
)
def test_importing_needs_nothing_and_running_says_what_it_needs(before: str, words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _CALL.format(before=before)]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert words in out
