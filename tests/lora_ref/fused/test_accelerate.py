"""Models that PEFT adapted, accelerated: the same numbers through every change of state, and undone without a trace."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_ref.errors import LoraError
from lora_ref.fused import accelerate
from lora_ref.fused.peft_linear import FusedLinear

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
K, N = 5, 7


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.q, self.gpt = nn.Embedding(9, K), nn.Linear(K, N), Conv1D(N, N)
        self.conv = nn.Conv1d(N, N, 1)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.gpt(self.q(self.table(ids)))  # (batch, seq, N)
        z: Tensor = self.conv(y.transpose(1, 2))
        return z


def adapted(
    targets: tuple[str, ...] = ("q", "gpt"),
    names: tuple[str, ...] = ("default",),
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    net = Net().to(dtype)
    first = LoraConfig(r=2, lora_alpha=3, target_modules=[*targets], **options)
    model = get_peft_model(net, first, names[0], autocast_adapter_dtype=False)
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(r=3, lora_alpha=2, target_modules=[*targets], **options))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter)
    return model


IDS = torch.tensor([[1, 2, 3], [4, 5, 8]])


def computed_by(y: Tensor) -> set[str]:
    todo, seen = [y.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None:
            seen.add(node.name())
            todo += [following for following, _ in node.next_functions]
    return seen & {"_LinearBackward", "_RoutedBackward"}


def both(change: Callable[[Any], object], **options: Any) -> tuple[Tensor, Tensor]:
    """What PEFT gives after a change of state, and what the accelerated model gives after the same."""
    found = []
    for fast in (False, True):
        model = adapted(**options).eval()
        if fast:
            accelerate(model)
        change(model)
        found.append(model(IDS))
    return found[0], found[1]


CHANGES: dict[str, tuple[Callable[[Any], object], bool]] = {
    "nothing": (lambda model: None, True),
    "other adapter": (lambda model: model.set_adapter("second"), True),
    "both adapters": (lambda model: model.base_model.set_adapter(["default", "second"]), True),
    "scaled": (lambda model: [layer.set_scale("default", 0.3) for layer in layers(model)], True),
    "deleted": (lambda model: model.delete_adapter("second"), True),
    "new values": (lambda model: [nn.init.ones_(layer.lora_A["default"].weight) for layer in layers(model)], True),
    "disabled": (lambda model: model.base_model.disable_adapter_layers(), False),
    "enabled again": (
        lambda model: (model.base_model.disable_adapter_layers(), model.base_model.enable_adapter_layers()),
        True,
    ),
    "merged": (lambda model: model.merge_adapter(), False),
    "unmerged": (lambda model: (model.merge_adapter(), model.unmerge_adapter()), True),
    "no casting": (lambda model: [setattr(layer, "cast_input_dtype_enabled", False) for layer in layers(model)], False),
    "hook on A": (
        lambda model: [
            layer.lora_A["default"].register_forward_hook(lambda _m, _a, y: 2 * y) for layer in layers(model)
        ],
        False,
    ),
}


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("change", CHANGES)
def test_every_state_gives_what_peft_gives(change: str) -> None:
    act, fused = CHANGES[change]
    plain, fast = both(act, names=("default", "second"))
    torch.testing.assert_close(fast, plain)
    assert computed_by(fast) == ({"_LinearBackward"} if fused else set())
    assert not computed_by(plain)


@pytest.mark.parametrize("names", [["default", "second"], ["__base__", "second"], ["default", "default"]])
def test_rows_of_several_adapters_are_fused_too(names: list[str]) -> None:
    plain, fast = (adapted(names=("default", "second")).eval() for _ in range(2))
    accelerate(fast)
    y = fast(IDS, adapter_names=names)
    torch.testing.assert_close(y, plain(IDS, adapter_names=names))
    assert computed_by(y) == ({"_RoutedBackward"} if "default" in names else set())  # the other one does not train
    with pytest.raises(ValueError, match="same as the number of inputs"):
        fast(IDS, adapter_names=["default"])


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"use_dora": True, "lora_dropout": 0.5}]
)
def test_gradients_are_those_of_peft(options: dict[str, Any]) -> None:
    found = []
    for fast in (False, True):
        model = adapted(**options).train(not options.get("lora_dropout"))
        if fast:
            accelerate(model)
        y = model(IDS)
        assert bool(computed_by(y)) is fast
        y.square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    for plain, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)


def test_dropout_in_training_is_fused_but_not_with_dora_or_beside_others() -> None:
    for options, fused in (
        ({}, True),
        ({"use_dora": True}, False),
        ({"names": ("default", "second")}, False),
    ):
        model = adapted(lora_dropout=0.5, **options).train()
        accelerate(model)
        model.base_model.set_adapter([*options.get("names", ("default",))])
        assert bool(computed_by(model(IDS))) is fused


def test_the_report_says_what_was_left_alone_and_why() -> None:
    model = adapted(("table", "q", "gpt", "conv"), bias="none")
    model.base_model.model.gpt.base_layer.weight.requires_grad_()
    report = accelerate(model)
    assert [path.rsplit(".", 1)[-1] for path in report.fused] == ["q"]
    why = {path.rsplit(".", 1)[-1]: reason for path, reason in report.left.items()}
    assert set(why) == {"table", "gpt", "conv"}
    assert "Embedding" in why["table"]
    assert "train" in why["gpt"]
    assert str(report).startswith("1 of 4 LoRA layers and 0 feed-forward blocks are fused\n")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True, "lora_dropout": 0.5}, "DoRA"),
        ({"init_lora_weights": "mica", "dtype": torch.float32}, "variant"),
    ],
)
def test_adapters_that_are_more_than_a_and_b_are_left_to_peft(options: dict[str, Any], word: str) -> None:
    report = accelerate(adapted(("q",), **options).train())
    assert not report.fused
    assert all(word in reason for reason in report.left.values())


def test_undo_leaves_no_trace() -> None:
    model = adapted()
    before = {path: (type(module), dict(vars(module))) for path, module in model.named_modules()}
    with accelerate(model) as report:
        assert {type(layer) for layer in layers(model)} == {FusedLinear}
        assert len(report.fused) == 2
        accelerate(model)
    for path, module in model.named_modules():
        assert type(module) is before[path][0]
        assert vars(module).keys() == before[path][1].keys()
    assert not computed_by(model(IDS))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_accelerated_and_independent(way: Callable[[Any], Any]) -> None:
    model = adapted()
    report = accelerate(model)
    twin, want = way(model), model(IDS)
    with torch.no_grad():
        for layer in layers(model):
            layer.lora_B["default"].weight.zero_()
    assert torch.equal(twin(IDS), want)
    report.undo()
    assert {type(layer) for layer in layers(twin)} == {FusedLinear}


def test_a_model_without_lora_is_refused() -> None:
    with pytest.raises(LoraError, match="get_peft_model"):
        accelerate(Net())


def test_peft_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, lora_ref.fused; sys.exit('peft' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the libraries among themselves
def test_a_trainer_trains_it(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from conformance.models import load

    data = [{"input_ids": torch.arange(n, n + 6), "labels": torch.arange(n, n + 6)} for n in range(8)]
    found = []
    for fast in (False, True):
        base = load("tiny-llama", "float32").fresh()
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]))
        if fast:
            assert len(accelerate(model).fused) == 6
        arguments = TrainingArguments(
            str(tmp_path / str(fast)), per_device_train_batch_size=4, max_steps=4, learning_rate=0.1, optim="sgd",
            gradient_checkpointing=True, report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True, seed=1,
        )  # fmt: skip
        loss = Trainer(model, arguments, train_dataset=data).train().training_loss
        found.append([torch.tensor(loss), *(p.detach() for n, p in model.named_parameters() if "lora_" in n)])
    for plain, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)
