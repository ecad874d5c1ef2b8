"""Whole models: what is targeted, what trains, and that an operation over many layers is all or nothing."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN002, ANN201, ANN204

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lora_ref.errors import LoraError
from lora_ref.layers import LoraLayer, outer_modules
from lora_ref.model import LoraModel, attach
from lora_ref.spec import LoraSpec

IDS = torch.tensor([[1, 5, 9, 2], [3, 3, 0, 96]])
LLAMA = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
BERT = ("query", "key", "value", "intermediate.dense", "output.dense")


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=97,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).double().eval()


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=97, num_labels=3
    )
    return BertForSequenceClassification(config).double().eval()


MODELS = {"llama": (llama, LLAMA), "bert": (bert, BERT)}


def stir(lora, *names):
    """Random A and B, so that nothing is hidden by B = 0."""
    with torch.no_grad():
        for name in names or lora.names:
            for delta in lora.deltas(name).values():
                delta.a.normal_(std=0.1)
                delta.b.normal_(std=0.1)
    return lora


def logits(module):
    with torch.no_grad():
        return module(IDS).logits


def values(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", MODELS)
def test_life_of_an_adapter(name):
    make, targets = MODELS[name]
    model = make()
    before, bare = values(model), logits(model)
    lora = attach(model, LoraSpec(r=4, alpha=8, targets=targets))
    assert torch.equal(logits(model), bare)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.adapters.default.{f}" for path in lora.layers() for f in "ab"}
    stir(lora)
    adapted = logits(model)
    assert not torch.equal(adapted, bare)
    lora.disable()
    assert torch.equal(logits(model), bare)
    lora.enable()
    assert torch.equal(logits(model), adapted)
    lora.set_scale("default", 0)
    assert torch.equal(logits(model), bare)
    lora.set_scale("default", 1)
    lora.merge()
    merged = logits(model)
    lora.merge()
    assert torch.equal(logits(model), merged)
    plain = copy.deepcopy(lora).unload(merge=True)
    assert torch.equal(logits(plain), merged)
    assert not any(isinstance(part, LoraLayer) for part in plain.modules())
    lora.unmerge()
    assert torch.equal(logits(model), adapted)
    assert lora.unload(merge=False) is model
    assert same(values(model), before)
    assert torch.equal(logits(model), bare)


def test_merged_is_the_sum_in_the_weights():
    model = llama()
    plain = copy.deepcopy(model)
    lora = stir(attach(model, LoraSpec(r=4, alpha=2, targets=LLAMA)))
    paths = [path for path in lora.layers() if not path.endswith("lm_head")]
    assert len(paths) == 12
    for path, delta in lora.deltas("default").items():
        module = plain.get_submodule(path)
        module.weight = nn.Parameter(module.weight + 0.5 * delta.b @ delta.a)
    lora.merge()
    assert torch.equal(logits(model), logits(plain))


def test_a_tied_head():
    model = llama()
    embedding = model.get_input_embeddings()
    assert model.lm_head.weight is embedding.weight
    before = embedding.weight.clone()
    lora = stir(attach(model, LoraSpec(r=4, alpha=8, targets=("lm_head",))))
    hidden = model.model(IDS).last_hidden_state
    lora.merge()
    assert torch.equal(embedding.weight, before)
    assert torch.equal(model.model(IDS).last_hidden_state, hidden)
    assert lora.layers()["lm_head"].base.weight is embedding.weight
    lora.unload(merge=True)
    assert torch.equal(embedding.weight, before)
    assert model.lm_head.weight is not embedding.weight


@pytest.mark.parametrize("name", MODELS)
def test_a_step_moves_the_adapters_and_nothing_else(name):
    make, targets = MODELS[name]
    model = make()
    lora = stir(attach(model, LoraSpec(r=4, alpha=8, dropout=0.1, targets=targets)))
    before = values(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):
        model.train()(IDS).logits.sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {key for key, value in values(model).items() if not torch.equal(value, before[key])}
    assert moved == {f"{path}.adapters.default.{f}" for path in lora.layers() for f in "ab"}


class Twice(nn.Module):
    """One linear under two names."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.seq = nn.Sequential(self.one, nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x):
        return self.seq(x)


def test_a_shared_module_is_wrapped_once_under_both_names():
    model = Twice()
    x = torch.ones(2, 4)
    bare = model(x)
    lora = attach(model, LoraSpec(r=2, alpha=3, targets=("one",)))
    assert list(lora.layers()) == ["one"]
    assert model.one is model.seq[0]
    assert not torch.equal(stir(lora).module(x), bare)
    lora.delete("default")
    assert type(model.one) is nn.Linear
    assert model.one is model.seq[0]
    assert torch.equal(model(x), bare)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LoraSpec(r=2, alpha=3), "without targets"),
        (LoraSpec(r=2, alpha=3, targets=("q_proj", "proj")), "target 'proj' matches no module"),
        (LoraSpec(r=2, alpha=3, targets=("self_attn",)), "target 'self_attn' matches no module"),
        (LoraSpec(r=2, alpha=3, targets=("q_proj",), rank_pattern={"v_proj": 3}), "rank_pattern key 'v_proj'"),
        (LoraSpec(r=2, alpha=3, targets=("q_proj",), alpha_pattern={"^q": 3}), "alpha_pattern key '\\^q'"),
        (LoraSpec(r=2, alpha=3, dropout=0.5, targets=("q_proj", "embed_tokens")), "set dropout to 0"),
    ],
)
def test_a_bad_spec_changes_nothing(spec, words):
    model = llama()
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(LoraError, match=words):
        attach(model, spec)
    assert not any(isinstance(part, LoraLayer) for part in model.modules())
    assert {key for key, p in model.named_parameters() if p.requires_grad} == trained
    lora = stir(attach(model, LoraSpec(r=2, alpha=3, targets=("q_proj",))))
    before, want = values(model), logits(model)
    for name in ("other", "a.b", "default"):
        with pytest.raises(LoraError):
            attach(model, spec, name)
    assert lora.names == ("default",)
    assert same(values(model), before)
    assert torch.equal(logits(model), want)


def test_patterns():
    spec = LoraSpec(
        r=2,
        alpha=3,
        rslora=True,
        targets=("q_proj", "v_proj"),
        rank_pattern={"q_proj": 5, "layers.1.self_attn.q_proj": 7},
        alpha_pattern={"v_proj": 11},
    )
    lora = attach(llama(), spec)
    found = {path: (d.spec.r, len(d.a), d.scaling) for path, d in lora.deltas("default").items()}
    assert found == {
        "model.layers.0.self_attn.q_proj": (5, 5, 3 / 5**0.5),
        "model.layers.0.self_attn.v_proj": (2, 2, 11 / 2**0.5),
        "model.layers.1.self_attn.q_proj": (7, 7, 3 / 7**0.5),
        "model.layers.1.self_attn.v_proj": (2, 2, 11 / 2**0.5),
    }
    assert lora.spec("default") is spec


def test_two_adapters_at_different_modules():
    model = llama()
    bare = logits(model)
    one = stir(attach(model, LoraSpec(r=2, alpha=3, targets=("q_proj", "lm_head")), "one"))
    first, before = logits(model), values(model)
    attach(model, LoraSpec(r=3, alpha=2, targets=("q_proj", "up_proj")), "two", trainable=False)
    assert one.names == ("one", "two")
    assert one.active == ("one",)
    assert torch.equal(logits(model), first)
    assert all(
        torch.equal(model.state_dict()[key], value) for key, value in before.items() if key in model.state_dict()
    )
    assert {key.split(".adapters.")[1][:3] for key, p in model.named_parameters() if p.requires_grad} == {"one"}
    stir(one, "two")
    assert torch.equal(logits(model), first)
    one.activate("two")
    second = logits(model)
    assert not torch.equal(second, bare)
    assert not any(p.requires_grad for p in model.parameters())
    one.merge()
    one.delete("one")
    one.unmerge()
    assert torch.equal(logits(model), second)
    assert type(model.lm_head) is nn.Linear
    one.delete("two")
    assert torch.equal(logits(model), bare)
    assert not one.layers()


def test_another_adapter_leaves_what_trains_as_the_user_set_it():
    lora = attach(llama(), LoraSpec(r=2, alpha=3, targets=("q_proj",)))
    for delta in lora.deltas("default").values():
        delta.a.requires_grad_(requires_grad=False)
    attach(lora.module, LoraSpec(r=2, alpha=3, targets=("q_proj", "v_proj")), "other")
    assert _trained(lora) == {"default.b"}
    lora.activate("other")
    assert _trained(lora) == {"other.a", "other.b"}


def _trained(lora: LoraModel) -> set[str]:
    named = lora.module.named_parameters()
    return {".".join(name.split(".")[-2:]) for name, parameter in named if parameter.requires_grad}


def test_what_controls_walk_through_does_not_grow_with_the_number_of_adapters():
    lora = attach(llama(), LoraSpec(r=2, alpha=3, targets=("q_proj",)))
    walked = outer_modules(lora.module)
    attach(lora.module, LoraSpec(r=3, alpha=1, targets=("q_proj",)), "other")
    assert outer_modules(lora.module).keys() == walked.keys()
    assert walked.items() <= dict(lora.module.named_modules()).items()


def test_a_disabled_model_stays_disabled():
    model = llama()
    bare = logits(model)
    lora = attach(model, LoraSpec(r=2, alpha=3, targets=("q_proj",)), "one")
    lora.disable()
    stir(attach(model, LoraSpec(r=2, alpha=3, targets=("q_proj", "up_proj")), "two"))
    lora.activate("one", "two")
    assert torch.equal(logits(model), bare)


def test_operations_are_all_or_nothing():
    model = llama()
    lora = stir(attach(model, LoraSpec(r=2, alpha=3, targets=("q_proj", "lm_head"))))
    with torch.no_grad():
        lora.deltas("default")["lm_head"].a.fill_(torch.inf)
    for act in (lora.merge, lambda: lora.unload(merge=True)):
        with pytest.raises(LoraError, match="not finite"):
            act()
        assert len(lora.layers()) == 3
        assert not any(layer.merged for layer in lora.layers().values())
    layers = list(lora.layers().values())
    layers[1].merge()
    for act in (lambda: lora.delete("default"), lambda: lora.set_scale("default", 2), lora.activate):
        with pytest.raises(LoraError, match="is merged"):
            act()
        assert all(layer.adapters.active == ("default",) for layer in layers)
        assert all(layer.adapters["default"].factor == 1 for layer in layers)
    for act in (lora.activate, lora.delete, lora.merge, lora.deltas, lora.spec, lambda n: lora.set_scale(n, 1)):
        with pytest.raises(LoraError, match="no adapter 'z'; there are: default"):
            act("z")


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copies):
    lora = stir(attach(llama(), LoraSpec(r=2, alpha=3, targets=("q_proj", "lm_head"))))
    want = logits(lora.module)
    other = copies(lora)
    assert other.spec("default") == lora.spec("default")
    assert torch.equal(logits(other.module), want)
    stir(other)
    other.disable()
    assert torch.equal(logits(lora.module), want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers(reentrant):
    grads = []
    for checkpointing in (False, True):
        model = llama()
        torch.manual_seed(1)
        stir(attach(model, LoraSpec(r=2, alpha=3, dropout=0.25, targets=("q_proj", "up_proj"))))
        model.enable_input_require_grads()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(2)
        model.train()(IDS, use_cache=False).logits.sin().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_reentrant_checkpointing_without_an_input_that_requires_grad_is_not_silent():
    lora = attach(nn.Sequential(nn.Linear(4, 4)), LoraSpec(r=2, alpha=3, targets=("0",)))
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        checkpoint(lora.module, torch.ones(1, 4), use_reentrant=True)


def test_torchs_encoder_layer_reads_weights_instead_of_calling():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x = torch.rand(2, 3, 8).double()
    bare = model(x)
    stir(attach(model, LoraSpec(r=2, alpha=3, targets=("linear1", "linear2"))))
    slow = model(x)
    with torch.no_grad():
        fast = model(x)  # torch's fused path
    moved = (slow - bare).abs()
    assert moved.max() > 0
    assert (fast - slow).abs().max() < moved.max() / 1000
