"""Between forward and backward the fused layers of a Llama keep no byte more than they must; simulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.models import targets_of
from bench.simulate.fake import faking, make_fake
from bench.simulate.language import language_model
from conformance.discovery import load as load_backend
from conformance.models import load as load_model
from conformance.saved import saved_bytes
from lora_ref.spec import LoraSpec

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft and transformers
R = 8  # small beside every width: no order of the products forms W + s·B·A


def kept(model: Any, batch: int, seq: int) -> int:
    mode = FakeTensorMode()
    make_fake(model, mode)
    with faking(mode):
        ids = torch.zeros(batch, seq, dtype=torch.int64)
        return saved_bytes(lambda: model(input_ids=ids, labels=ids).loss, [*model.parameters(), *model.buffers()])


def bare(model: Any) -> Any:
    """With the gradients that adapters in the first layer make the others pass on: none of the first norm."""
    model.requires_grad_(requires_grad=False)
    model.model.layers[0].input_layernorm.register_forward_hook(lambda _m, _i, y: y.requires_grad_())
    return model


def adapted(model: Any, backend: str, dtype: torch.dtype) -> Any:
    model.requires_grad_(requires_grad=False)
    module = load_backend(backend).model.attach(model, LoraSpec(R, 32.0, targets=targets_of(model))).module  # type: ignore[union-attr]
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return module


def least(config: Any, tokens: int, dtype: torch.dtype, factors: torch.dtype) -> int:
    """Beyond what the bare model keeps.

    The x of query, key and value, and that of gate and up, once each; the input of ``o`` is the attention's output,
    which is kept as it is. The r columns of all seven. And act(gate), which the bare model keeps, can be formed again,
    and the input of ``down`` as well.
    """
    wide = torch.promote_types(dtype, factors)
    inputs = (2 * config.hidden_size - config.intermediate_size) * dtype.itemsize
    return int(config.num_hidden_layers * tokens * (inputs + 7 * R * wide.itemsize))


@pytest.mark.parametrize("backend", ["fused", "peft+fused"])
@pytest.mark.parametrize("factors", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_llama_2_7b(backend: str, factors: torch.dtype) -> None:
    def model() -> Any:
        return language_model("llama-2-7b", "bfloat16", 2048, checkpointing=False)

    minimum = kept(bare(model()), 1, 2048) + least(model().config, 2048, torch.bfloat16, factors)
    assert kept(adapted(model(), backend, factors), 1, 2048) == minimum
    assert kept(adapted(model(), "peft", factors), 1, 2048) > minimum


@pytest.mark.parametrize("backend", ["fused", "peft+fused"])
def test_a_tiny_llama(backend: str) -> None:
    def model() -> Any:
        return load_model("tiny-llama", "float32").fresh()

    minimum = kept(bare(model()), 2, 16) + least(model().config, 32, torch.float32, torch.float32)
    assert kept(adapted(model(), backend, torch.float32), 2, 16) == minimum
