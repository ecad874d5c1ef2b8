"""Hooks compute what wrappers compute, and leave the model's own modules and keys alone."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN002, ANN201

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_ref.errors import LoraError
from lora_ref.hooks import attach_hooks
from lora_ref.model import attach
from lora_ref.spec import LoraSpec

IDS = torch.tensor([[1, 5, 9, 2], [3, 3, 0, 96]])
SPEC = LoraSpec(r=3, alpha=2, targets=("q_proj", "v_proj", "down_proj", "lm_head", "embed_tokens"))


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=97,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).double().eval()


def stir(lora, *names):
    torch.manual_seed(3)
    with torch.no_grad():
        for name in names or lora.names:
            for delta in lora.deltas(name).values():
                delta.a.normal_(std=0.1)
                delta.b.normal_(std=0.1)
    return lora


def logits(module):
    with torch.no_grad():
        return module(IDS).logits


def test_the_same_function_as_by_wrappers():
    wrapped, hooked = attach(llama(), SPEC), attach_hooks(llama(), SPEC)
    assert list(hooked.deltas("default")) == list(wrapped.deltas("default"))
    assert torch.equal(logits(stir(hooked).module), logits(stir(wrapped).module))
    wrapped.set_scale("default", -3)
    hooked.set_scale("default", -3)
    assert torch.equal(logits(hooked.module), logits(wrapped.module))


def test_life_of_an_adapter():
    model = llama()
    before, bare = {k: v.clone() for k, v in model.state_dict().items()}, logits(model)
    lora = attach_hooks(model, SPEC)
    assert torch.equal(logits(model), bare)
    added = {f"{path}.lora.default.{f}" for path in lora.adapters() for f in "ab"}
    assert model.state_dict().keys() == before.keys() | added
    assert {key for key, p in model.named_parameters() if p.requires_grad} == added
    one = logits(stir(lora).module)
    assert not torch.equal(one, bare)
    attach_hooks(model, LoraSpec(r=2, alpha=5, targets=("q_proj", "up_proj")), "two")
    assert torch.equal(logits(stir(lora, "two").module), one)
    lora.activate("two")
    two = logits(model)
    assert {key.split(".lora.")[1][:3] for key, p in model.named_parameters() if p.requires_grad} == {"two"}
    lora.delete("default")
    assert torch.equal(logits(model), two)
    assert "lora" not in model.lm_head._modules
    assert not model.lm_head._forward_hooks
    lora.disable()
    assert torch.equal(logits(model), bare)
    lora.enable()
    assert torch.equal(logits(model), two)
    assert lora.detach() is model
    assert torch.equal(logits(model), bare)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_hooks_of_their_own(copies):
    lora = stir(attach_hooks(llama(), SPEC))
    want = logits(lora.module)
    other = copies(lora)
    assert torch.equal(logits(other.module), want)
    with torch.no_grad():
        for p in other.module.parameters():
            p.zero_()
    assert torch.equal(logits(lora.module), want)
    other.detach()
    assert not any(part._forward_hooks for part in other.module.modules())
    assert torch.equal(logits(lora.module), want)


def test_each_hook_reads_its_own_module():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double()
    lora = attach_hooks(model, LoraSpec(r=1, alpha=1, targets=("0", "1", "2")))
    with torch.no_grad():
        for i, delta in enumerate(lora.deltas("default").values()):
            delta.a.fill_(1)
            delta.b.fill_(i + 1)
    for i, module in enumerate(model):
        x = torch.ones(1, 3).double()
        delta = lora.deltas("default")[str(i)]
        assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias) + 3 * (i + 1))
        assert torch.equal(module(input=x), module(x))
        assert delta is module.lora["default"]


def test_a_shared_module_is_hooked_once():
    linear = nn.Linear(4, 4).double()
    model = nn.ModuleDict({"one": linear, "two": linear})
    lora = stir(attach_hooks(model, LoraSpec(r=2, alpha=3, targets=("one",))))
    x = torch.ones(1, 4).double()
    assert torch.equal(model["two"](x), nn.functional.linear(x, linear.weight, linear.bias) + linear.lora["default"](x))
    assert list(lora.adapters()) == ["one"]


def test_refusals():
    model = llama()
    with pytest.raises(LoraError, match="'nothing' matches no module"):
        attach_hooks(model, LoraSpec(r=2, alpha=3, targets=("q_proj", "nothing")))
    assert not any(part._forward_hooks for part in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    lora = attach_hooks(model, SPEC)
    with pytest.raises(LoraError, match="already"):
        attach_hooks(model, SPEC)
    with pytest.raises(LoraError, match="use attach"):
        lora.merge()
    with pytest.raises(LoraError, match="the other kind"):
        attach(model, SPEC, "other")
    wrapped = llama()
    attach(wrapped, SPEC)
    with pytest.raises(LoraError, match="the other kind"):
        attach_hooks(wrapped, SPEC, "other")
    owner = nn.Sequential(nn.Linear(3, 3))
    owner[0].lora = 1
    with pytest.raises(LoraError, match="'0' has an attribute lora"):
        attach_hooks(owner, LoraSpec(r=1, alpha=1, targets=("0",)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_compile(reentrant):
    model = nn.Sequential(Conv1D(6, 4), nn.Tanh(), nn.Linear(6, 2)).double()
    lora = stir(attach_hooks(model, LoraSpec(r=2, alpha=3, dropout=0.5, targets=("0", "2"))))
    results = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        x = torch.ones(3, 4).double().requires_grad_()
        model.zero_grad()
        torch.manual_seed(1)
        run(x).sum().backward()
        results.append([x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    model.eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    lora.set_scale("default", 2)
    assert torch.equal(compiled(x), model(x))


def test_torchs_encoder_layer_takes_its_slow_path():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x = torch.rand(2, 3, 8).double()
    stir(attach_hooks(model, LoraSpec(r=2, alpha=3, targets=("linear1", "linear2"))))
    with torch.no_grad():
        fast = model(x)
    assert torch.equal(fast, model(x))
