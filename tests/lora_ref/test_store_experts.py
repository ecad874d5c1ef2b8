"""Adapter files of stacks of experts: the same again from a file, and PEFT's own reading and writing of them."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN201

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lora_ref.errors import LoraError
from lora_ref.expert_stack import ExpertStack
from lora_ref.model import attach
from lora_ref.spec import LoraSpec
from lora_ref.store import CONFIG, load, save

E, K, N, R = 4, 5, 3, 2
SPEC = LoraSpec(R, 3.0, targets=("experts", "head"))
INDEX = torch.tensor([2, 0, 2, 2, 0, 3])


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts, self.head = ExpertStack(E, K, N), nn.Linear(N, N)
        self.experts.index = INDEX

    def forward(self, x):
        return self.head(self.experts(x))


def adapted(spec=SPEC):
    lora = attach(Mixture(), spec)
    for delta in lora.deltas("default").values():
        nn.init.normal_(delta.b)
    return lora


def test_round_trip(tmp_path):
    lora, x = adapted(), torch.randn(6, K)
    save(lora, tmp_path / "a")
    again = load(Mixture(), tmp_path / "a")
    assert torch.equal(again.module(x), lora.module(x))
    for path, delta in lora.deltas("default").items():
        other = again.deltas("default")[path]
        assert torch.equal(other.a, delta.a)
        assert torch.equal(other.b, delta.b)


def test_peft_reads_it(tmp_path):
    lora, x = adapted(), torch.randn(6, K)
    save(lora, tmp_path / "a")
    theirs = PeftModel.from_pretrained(Mixture(), tmp_path / "a")
    torch.testing.assert_close(theirs(x), lora.module(x))


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_writes_is_read(tmp_path, rslora):
    config = LoraConfig(
        r=R, lora_alpha=3, use_rslora=rslora, target_modules=["head"], target_parameters=["experts.weight"]
    )
    theirs, x = get_peft_model(Mixture(), config), torch.randn(6, K)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path / "a")
    torch.testing.assert_close(load(Mixture(), tmp_path / "a").module(x), theirs(x))


def test_what_the_layout_cannot_hold_is_refused(tmp_path):
    with pytest.raises(LoraError, match="no dropout for the experts at experts"):
        save(adapted(replace(SPEC, dropout=0.5)), tmp_path / "a")
    with pytest.raises(LoraError, match="PEFT reads these patterns otherwise at experts"):
        save(adapted(replace(SPEC, rank_pattern={"experts": 3})), tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 3}, "A of the experts has shape"),
        ({"target_parameters": ["experts.bias"]}, "paths that end in .weight"),
        ({"target_parameters": "experts.weight"}, "must be a list"),
        ({"target_parameters": []}, "foreign tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, words):
    save(adapted(), tmp_path / "a")
    config = tmp_path / "a" / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    model = Mixture()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(LoraError, match=words):
        load(model, tmp_path / "a")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
