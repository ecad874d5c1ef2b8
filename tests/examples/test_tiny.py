"""The programs' tiny form: it trains, leaves the base alone, and what it saves is an adapter that PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from corpora import labelled
from programs import PROGRAMS, call, digests, metrics
from safetensors.torch import load_file

from conformance.models import load

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers, peft and torch warn of is theirs

ON_TARGETS = {  # both layers of the tiny models: query, key, value and the feed-forward layers
    "finetune_bert": 2 * 5,
    "finetune_llama": 2 * 6,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    """A run of the program with the reference, made once."""
    made: dict[str, Path] = {}

    def run(program: str) -> Path:
        if program not in made:
            made[program] = tmp_path_factory.mktemp(program) / "run"
            result = call(program, made[program], "--tiny")
            assert result.exit_code == 0, result.output
        return made[program]

    return run


def must_have_learnt(program: str, out: Path) -> None:
    found = metrics(out)
    assert found["base unchanged"] is True
    if program == "finetune_bert":
        for task in found["tasks"].values():
            assert task["after"] > task["majority"]
            assert task["history"][-1]["loss"] < task["history"][0]["loss"]
    else:
        losses = found["held-out loss by adapter"]
        for task in found["tasks"]:
            assert losses[task][task] < losses["none"][task]


@pytest.mark.parametrize("program", PROGRAMS)
def test_reference(program: str, tiny) -> None:  # noqa: ANN001
    out = tiny(program)
    must_have_learnt(program, out)
    for task in metrics(out)["tasks"]:
        config = json.loads((out / task / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(out / task / "adapter" / "adapter_model.safetensors")
        assert len(tensors) == 2 * ON_TARGETS[program]
        assert all(tensor.any() for tensor in tensors.values())  # B has left zero, everywhere
        assert (config["r"], config["lora_alpha"]) == (16, 32.0)


@pytest.mark.parametrize("backend", ["hooks", "fused", "peft"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_other_backends(program: str, backend: str, tmp_path: Path) -> None:
    result = call(program, tmp_path / "run", "--tiny", "--backend", backend)
    assert result.exit_code == 0, result.output
    must_have_learnt(program, tmp_path / "run")


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_adapter_serves_its_own_task(program: str, tiny) -> None:  # noqa: ANN001
    """Switched at run time: the first answers after the second was trained as it did when it was trained."""
    found = metrics(tiny(program))
    first, second = found["tasks"]
    if program == "finetune_bert":
        by = found["accuracy by adapter"]
        assert all(by[task][task] == found["tasks"][task]["after"] for task in (first, second))
        assert by[first][first] > by[second][first]
        assert by[second][second] > by[first][second]
    else:
        assert found["held-out loss by adapter"][first] != found["held-out loss by adapter"][second]


def test_peft_loads_what_bert_saved(tiny) -> None:  # noqa: ANN001
    """Adapter and head on a fresh body give the accuracy that the program reported."""
    from finetune_bert import Encoded, accuracy, new_head
    from pretrained import load as pretrained

    out = tiny("finetune_bert")
    tasks = labelled([], 0, made_up=True)
    texts = [sentence for task in tasks for sentence, _ in task.train]
    for task in tasks:
        body, tokenizer = pretrained("tiny-bert", texts, causal=False)
        body.to("cuda" if torch.cuda.is_available() else "cpu")
        head, data = new_head(body, task, 0), Encoded(task, tokenizer, 32, body)
        head.load_state_dict(load_file(out / task.name / "head.safetensors"))
        theirs = peft.PeftModel.from_pretrained(body, out / task.name / "adapter")
        assert accuracy(theirs, head, data) == metrics(out)["tasks"][task.name]["after"]


def test_peft_loads_what_llama_saved(tiny) -> None:  # noqa: ANN001
    """Loaded, the adapter is where it was: every A and B on its own module, with the scale of the file."""
    out = tiny("finetune_llama")
    for task in metrics(out)["tasks"]:
        folder = out / task / "adapter"
        theirs = peft.PeftModel.from_pretrained(load("tiny-llama", "float32").fresh(), folder)
        live = {name.replace(".default", ""): value for name, value in theirs.named_parameters() if ".lora_" in name}
        saved = load_file(folder / "adapter_model.safetensors")
        assert live.keys() == saved.keys()
        assert all(torch.equal(live[name], saved[name]) for name in saved)


@pytest.mark.parametrize("program", PROGRAMS)
def test_finished_run_is_left_alone(program: str, tiny) -> None:  # noqa: ANN001
    out = tiny(program)
    before = digests(out)
    result = call(program, out, "--tiny")
    assert result.exit_code == 0
    assert "finished" in result.output
    assert digests(out) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_mixed_precision_where_the_device_has_it(tiny) -> None:  # noqa: ANN001
    out = tiny("finetune_llama")
    assert metrics(out)["precision"] in {"bfloat16", "float16"}
    must_have_learnt("finetune_llama", out)
