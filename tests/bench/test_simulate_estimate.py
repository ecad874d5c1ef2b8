"""Estimates of whole language models, and what ``lora-bench simulate`` tells of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.commands.simulate import execute
from bench.simulate import estimate
from bench.simulate.adapter_file import file_bytes
from bench.simulate.devices import device
from bench.simulate.estimate import Setting, full, lora
from bench.simulate.language import language_model
from bench.simulate.tracker import Category
from conformance.discovery import UsageError, load
from conformance.models import load as load_model
from lora_ref.spec import LoraSpec

pytestmark = [  # names that transformers renamed in 5.x; peft and older versions know only these
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

H100 = device("h100")
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A path that ``--model`` takes."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("way", ["plain", "checkpointing"])
def test_memory_grows_with_the_sequence_and_not_with_its_square(config: str, way: str) -> None:
    on = way == "checkpointing"
    short, long = (lora(Setting(config, "peft", 4, 1, n), H100, checkpointing=on) for n in (512, 2048))
    moving = [e.peak - e.memory[Category.PARAMETERS] - e.memory[Category.OPTIMISER] for e in (short, long)]
    assert moving[1] < 4.1 * moving[0]


def test_the_categories_of_an_estimate(config: str) -> None:
    setting = Setting(config, "reference", 4, 2, 128, targets=("q_proj", "down_proj"))
    low, all_ = lora(setting, H100, checkpointing=False), full(setting, H100, checkpointing=False)
    trained = 2 * (4 * (64 + 64) + 4 * (128 + 64))
    assert low.trainable_params == trained
    assert low.total_params == all_.total_params + trained
    assert all_.trainable_params == all_.total_params
    for found in (low, all_):
        assert sum(found.memory.values()) == found.peak
        assert found.fits(H100)
    assert 2 * 2 * trained <= low.memory[Category.OPTIMISER] <= 2 * 2 * trained + 512 * 3 * 8  # bfloat16; 8 factors
    assert low.memory[Category.OPTIMISER] < all_.memory[Category.OPTIMISER]
    assert low.file_bytes is not None
    assert all_.file_bytes is None


def test_adapters_in_float32_keep_x_in_float32(config: str) -> None:
    narrow, wide = (
        lora(Setting(config, "peft", 4, 2, 512, adapter_dtype=d), H100, checkpointing=False)
        for d in ("bfloat16", "float32")
    )
    assert wide.memory[Category.ACTIVATIONS] > 1.3 * narrow.memory[Category.ACTIVATIONS]


def test_seven_billion_parameters_on_this_machine() -> None:
    found = lora(Setting("llama-2-7b", "peft", 16, 4, 512), H100, checkpointing=True)
    layer = 4 * (4096 + 4096) + 3 * (4096 + 11008)
    assert found.trainable_params == 32 * 16 * layer == 39_976_960
    assert found.total_params == 6_738_415_616 + 39_976_960
    exact = 2 * found.total_params
    assert exact <= found.memory[Category.PARAMETERS] < exact * 1.001
    kept = 32 * 4 * 512 * 4096 * 2  # what each checkpoint starts from, in bfloat16
    assert kept < found.memory[Category.ACTIVATIONS] < 2 * kept
    assert found.flops == pytest.approx(8 * 6.74e9 * 2048, rel=0.3)  # two forwards, one backward to x


@pytest.mark.parametrize(
    ("r", "targets", "parameters"),
    [(32, ("q_proj", "v_proj"), 9_175_040), (10, ("gate_proj", "up_proj", "down_proj"), 9_461_760)],
)
@pytest.mark.parametrize("backend", ["reference", "peft"])
def test_trainable_parameters_are_those_that_peft_reports_for_llama_3_2(
    backend: str, r: int, targets: tuple[str, ...], parameters: int
) -> None:
    model = language_model("llama-3.2-3b", "bfloat16", 1, checkpointing=False).requires_grad_(requires_grad=False)
    module = load(backend).model.attach(model, LoraSpec(r, 64.0, targets=targets)).module
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == parameters


def test_the_adapter_file_of_llama_3_2_has_the_size_that_peft_reports() -> None:
    shapes = {"q": (3072, 3072), "v": (1024, 3072)}
    weights = {f"model.layers.{n}.self_attn.{k}_proj": shape for n in range(28) for k, shape in shapes.items()}
    assert file_bytes(weights, 32, "float32") == 36_715_216


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_an_adapter_file_is_that_of_the_file(dtype: str, tmp_path: Path) -> None:
    model = load_model("tiny-llama", dtype).fresh()
    targets = ("q_proj", "v_proj", "down_proj")
    weights = {p: tuple(m.weight.shape) for p, m in model.named_modules() if p.endswith(targets)}
    peft = load("peft")
    peft.store.dump(peft.model.attach(model, LoraSpec(4, 8.0, targets=targets)), tmp_path)
    assert file_bytes(weights, 4, dtype) == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_the_command_shows_all_four_and_writes_the_same(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "out.json"
    assert execute(config, "peft", r=4, batch=2, seq=64, gpu="H100", target=["q_proj"], out=out) == 0
    text = capsys.readouterr().out
    assert "NVIDIA H100" in text
    assert "LoRA, checkpointing" in text
    told = json.loads(out.read_text(encoding="utf-8"))
    assert [(s["method"], s["checkpointing"]) for s in told["steps"]] == [
        *(("LoRA", False), ("LoRA", True)),
        *(("full", False), ("full", True)),
    ]
    assert all(s["fits"] and s["peak"] == sum(s["memory"].values()) for s in told["steps"])
    assert told["setting"]["adapter_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gpu": "h10"}, "unknown GPU 'h10': did you mean h100"),
        ({"backend": "pefft"}, "did you mean 'peft'"),
        ({"backend": "loralib"}, "no Model facet"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"alpha": -1.0}, "alpha must be finite and positive"),
        ({"target": ["nothing"]}, "'nothing' matches no module"),
        ({"seq": 5000}, "4096 positions"),
        ({"out": Path("/proc/no/such/file")}, "cannot be written"),
    ],
)
def test_bad_requests_are_told_in_one_line(config: str, changed: dict[str, Any], words: str) -> None:
    asked = {"r": 4, "batch": 1, "seq": 8, "gpu": "h100", "backend": "reference"} | changed
    with pytest.raises(UsageError, match=words) as error:
        execute(config, checkpointing=False, **asked)
    assert "\n" not in str(error.value)


def test_an_encoder_is_a_masked_language_model() -> None:
    found = lora(Setting("bert-base", "reference", 8, 1, 64), H100, checkpointing=False)
    assert found.total_params > 109e6
    with pytest.raises(UsageError, match="512 positions"):
        language_model("bert-base", "float32", 513, checkpointing=False)


def test_no_default_is_left_changed(config: str) -> None:
    lora(Setting(config, "peft", 4, 1, 8), H100, checkpointing=False)
    assert torch.get_default_dtype() is torch.float32
    assert not isinstance(torch.ones(1), torch._subclasses.FakeTensor)
    assert estimate.Setting(config, "peft", 4, 1, 8).targets == ()
