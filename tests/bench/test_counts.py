"""Counted figures against closed forms and against torch's own counter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.canonical import group, layer, layer_shapes, mixed, whole
from bench.cases import Case, Mode
from bench.nets import build
from bench.simulate.counts import count, tracked
from bench.simulate.fake import faking, make_fake
from bench.simulate.work import FLOPS
from bench.subject import UnsupportedError, adapted
from conformance.discovery import UsageError
from conformance.saved import saved_bytes

pytestmark = [  # names that transformers renamed in 5.x; peft and older versions know only these
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

SHAPES = list(layer_shapes())
M, R = 8192, 16
LLAMA = Case("llama-2-7b", "q", 4096, 4096, R, 1, M, Mode.STEP, base_dtype="bfloat16", adapter_dtype="bfloat16")


def _layer(shape: tuple[str, str, int, int], **changes: Any) -> Case:
    model, module, fan_in, fan_out = shape
    return replace(Case(model, module, fan_in, fan_out, R, 1, M, Mode.STEP), **changes)


@pytest.mark.parametrize("backend", ["frozen", "reference", "peft"])
def test_flops_of_every_canonical_layer_are_the_closed_form(backend: str) -> None:
    adapter = 0 if backend == "frozen" else 1
    for shape in SHAPES:
        k, n = shape[2:]
        expected = 4 * M * k * n + adapter * (6 * M * k * R + 6 * M * R * n)
        assert count(_layer(shape), backend).flops == expected, shape


def test_the_known_figure() -> None:
    assert count(LLAMA, "peft").flops == 556_198_264_832


@pytest.mark.parametrize("backend", ["frozen", "reference", "peft"])
def test_a_step_is_a_forward_and_a_backward(backend: str) -> None:
    for case in (
        _layer(SHAPES[0]),
        group("bert-base", "mlp", 8, 64, Mode.STEP),
        group("llama-3-8b", "qkv", 8, 64, Mode.STEP),
    ):
        step, fwd, bwd = (count(replace(case, mode=mode), backend) for mode in (Mode.STEP, Mode.FORWARD, Mode.BACKWARD))
        assert (fwd.flops + bwd.flops, fwd.n_ops + bwd.n_ops) == (step.flops, step.n_ops)
        assert fwd.sim_peak_bytes == bwd.sim_peak_bytes == step.sim_peak_bytes


@pytest.mark.parametrize(
    ("adapter_dtype", "dropout", "known"),
    [("float32", 0.0, 168_820_736), ("float32", 0.1, 303_038_464), ("bfloat16", 0.0, 101_187_584)],
)
def test_what_peft_keeps_for_the_backward(adapter_dtype: str, dropout: float, known: int) -> None:
    """The known figures count W, A and B as well: W (4096, 4096) in bfloat16; x, h and the mask in the adapter's."""
    case = replace(LLAMA, adapter_dtype=adapter_dtype, dropout=dropout)
    size = 4 if adapter_dtype == "float32" else 2
    x, h, mask = M * 4096 * size, M * R * size, M * 4096 * size if dropout else 0
    weights = 4096 * 4096 * 2 + 2 * 4096 * R * size
    assert count(case, "peft").saved_bytes == x + h + mask
    assert x + h + mask + weights == known
    subject = adapted(case, "peft", "meta")
    mode = FakeTensorMode()
    make_fake(subject.module, mode)
    with faking(mode):
        inputs = build(case).inputs(0)
        assert saved_bytes(lambda: subject.call(inputs), ()) == known


def test_the_reference_keeps_x_and_h_and_the_frozen_layer_nothing() -> None:
    assert count(LLAMA, "reference").saved_bytes == M * 4096 * 2 + M * R * 2
    assert count(LLAMA, "frozen").saved_bytes == 0


def test_saved_bytes_are_the_same_under_fake_tensors_as_for_real() -> None:
    case = layer("bert-base", "q", 8, 256, Mode.STEP)
    subject = adapted(case, "peft")
    inputs = subject.net.inputs(0)
    assert saved_bytes(lambda: subject.call(inputs), subject.module.parameters()) == count(case, "peft").saved_bytes > 0


def test_checkpoints_keep_what_they_start_from() -> None:
    case = whole("minilm", 8, 8, 32, Mode.STEP)
    plain, saving = count(case, "peft").saved_bytes, count(replace(case, grad_ckpt=True), "peft").saved_bytes
    starts = 6 * 8 * 32 * 384 * 4  # of six layers, (8, 32, 384) in float32
    assert starts <= saving < plain / 5


def test_flops_of_a_whole_model_are_those_of_torchs_own_counter() -> None:
    case = whole("tiny-llama", 8, 2, 16, Mode.STEP)
    subject = adapted(case, "peft")
    inputs = subject.net.inputs(0)
    with FlopCounterMode(display=False, custom_mapping=_fused()) as counter:
        subject.call(inputs).backward()
    assert count(case, "peft").flops == tracked(case, "peft").flops == counter.get_total_flops() > 0


def _fused() -> dict[Any, Any]:
    """torch's counter has no formula for the CPU's fused attention."""
    aten = torch.ops.aten
    names = (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    for name in names:
        FLOPS[name]._get_raw = True
    return {name: FLOPS[name] for name in names}


def test_attention_counts_two_products_forward_and_five_backward() -> None:
    q = torch.ones(2, 3, 16, 8, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=_fused()) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    product = 2 * 2 * 3 * 16 * 16 * 8
    assert counter.get_total_flops() == 7 * product


def test_layer_backends_are_counted_too() -> None:
    found = count(layer("bert-base", "q", 8, 64, Mode.STEP), "loralib")
    assert found.trainable_params == 8 * (768 + 768)
    assert found.flops > 0


def test_trainable_parameters() -> None:
    assert count(LLAMA, "reference").trainable_params == 2 * R * 4096
    assert count(LLAMA, "frozen").trainable_params == 0


@pytest.mark.parametrize(
    "case",
    [layer("bert-base", "q", 8, 4, Mode.MERGE), mixed("bert-base", "q", 8, 4, 2, "same"), replace(LLAMA, compile=True)],
)
def test_what_has_no_step_is_refused(case: Case) -> None:
    with pytest.raises(UnsupportedError, match="counted in training and without"):
        count(case, "reference")


def test_unknown_backend() -> None:
    with pytest.raises(UsageError, match="did you mean 'peft'"):
        count(LLAMA, "pefft")
