"""Files: PEFT reads ours, we read PEFT's, and a file that is not right in every respect loads nothing."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202, ANN204

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_ref.errors import LoraError
from lora_ref.hooks import HookedModel, attach_hooks
from lora_ref.layers import LoraLayer
from lora_ref.model import attach
from lora_ref.spec import LoraSpec
from lora_ref.store import load, save


class Kinds(nn.Module):
    """Every kind of base that PEFT's layout can hold."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.conv1 = nn.Conv1d(6, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 3, (3, 1))
        self.conv3 = nn.Conv3d(3, 5, 1)
        self.linear = nn.Linear(3, 5)
        self.gpt = Conv1D(4, 3)

    def forward(self, ids):
        h = self.conv1(self.embed(ids).mT)  # (n, 4, t)
        h = self.conv2(h[..., None])  # (n, 3, t - 2, 1)
        return self.conv3(h[..., None]), self.linear(h[..., 0].mT), self.gpt(h[..., 0].mT.contiguous())


def kinds():
    torch.manual_seed(0)
    return Kinds().double()


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
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=97)
    return BertModel(config).double().eval()


IDS = torch.tensor([[1, 5, 9, 2], [3, 3, 0, 7]])
CASES = {
    "kinds": (kinds, LoraSpec(r=3, alpha=2.5, targets=("embed", "conv1", "conv2", "conv3", "linear", "gpt"))),
    "llama": (
        llama,
        LoraSpec(
            r=4,
            alpha=6,
            rslora=True,
            dropout=0.1,
            targets=("q_proj", "v_proj", "down_proj"),
            rank_pattern={"q_proj": 5, "layers.1.self_attn.q_proj": 3},
            alpha_pattern={"0.mlp.down_proj": 1.5},
        ),
    ),
    "bert": (bert, LoraSpec(r=2, alpha=1, targets=("query", "value", "intermediate.dense", "word_embeddings"))),
}


def stir(lora):
    with torch.no_grad():
        for delta in lora.deltas("default").values():
            delta.a.normal_(std=0.5)
            delta.b.normal_(std=0.5)
    return lora


def outputs(module):
    with torch.no_grad():
        out = module(IDS)
    out = out if isinstance(out, tuple) else [value for value in out.values() if torch.is_tensor(value)]
    return [each for each in out if torch.is_tensor(each)]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one, other):
    """To the last bits of float64: PEFT sums in another order."""
    return all(
        (a - b).abs().max() <= 1e3 * torch.finfo(a.dtype).eps * a.abs().max() for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, tmp_path):
    make, spec = CASES[case]
    lora = stir(attach(make(), spec))
    lora.module.eval()
    want = outputs(lora.module)
    lora.merge()
    save(lora, tmp_path / "deep" / "adapter")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["adapter"]
    other = load(make().eval(), tmp_path / "deep" / "adapter", "mine")
    assert same(outputs(other.module), want)
    assert other.spec("mine") == spec
    assert not any(p.requires_grad for p in other.module.parameters())
    hooked = load(make().eval(), tmp_path / "deep" / "adapter", trainable=True, kind=HookedModel)
    assert isinstance(hooked, HookedModel)
    assert same(outputs(hooked.module), want)
    assert sum(p.requires_grad for p in hooked.module.parameters()) == 2 * len(lora.layers())
    save(hooked, tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "deep" / "adapter" / file).read_bytes()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")  # one flag for Linear and Conv1D: PEFT mends it
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # between PEFT and transformers
@pytest.mark.parametrize("case", CASES)
def test_peft_reads_ours(case, tmp_path):
    make, spec = CASES[case]
    lora = stir(attach(make().eval(), spec))
    save(lora, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "a").eval()
    assert close(outputs(theirs.base_model.model), outputs(lora.module))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_we_read_pefts(case, tmp_path):
    make, spec = CASES[case]
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        use_rslora=spec.rslora,
        lora_dropout=spec.dropout,
        target_modules=list(spec.targets),
        init_lora_weights=False,
        fan_in_fan_out=case == "kinds",
        rank_pattern=dict(sorted(spec.rank_pattern.items(), reverse=True, key=lambda kv: len(kv[0]))),
        alpha_pattern=dict(spec.alpha_pattern),
    )
    theirs = peft.get_peft_model(make(), config).eval()
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    bare = outputs(make().eval())
    lora = load(make().eval(), tmp_path / "a")
    assert close(outputs(lora.module), outputs(theirs.base_model.model))
    assert not same(outputs(lora.module), bare)
    assert set(lora.spec("default").targets) == set(spec.targets)


def test_a_copy_of_the_base_in_the_file_must_be_the_base(tmp_path):
    spec = LoraSpec(r=2, alpha=3, targets=("embed_tokens", "q_proj"))
    lora = stir(attach(llama(), spec))
    save(lora, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    key, weight = "base_model.model.model.embed_tokens.base_layer.weight", llama().model.embed_tokens.weight.detach()
    write(tmp_path / "a", tensors=tensors | {key: weight})
    assert same(outputs(load(llama(), tmp_path / "a").module), outputs(lora.module))
    for other in (weight + 1, weight.float()):
        write(tmp_path / "a", tensors=tensors | {key: other})
        with pytest.raises(LoraError, match="is for another base"):
            load(llama(), tmp_path / "a")


def test_dtypes_of_the_file_are_kept(tmp_path):
    lora = stir(attach(llama().bfloat16(), LoraSpec(r=2, alpha=3, targets=("q_proj",)), dtype=torch.float32))
    save(lora, tmp_path / "a")
    other = load(llama().bfloat16(), tmp_path / "a")
    assert same(outputs(other.module), outputs(lora.module))
    assert {p.dtype for p in other.deltas("default").popitem()[1].parameters()} == {torch.float32}
    narrow = load(llama().bfloat16(), tmp_path / "a", dtype=torch.bfloat16)
    assert {p.dtype for p in narrow.deltas("default").popitem()[1].parameters()} == {torch.bfloat16}


def write(folder, config=None, tensors=None):
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def first(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors, min(tensors)


def cut(folder, end):
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:end])


def pickled(folder):
    torch.save(first(folder)[0], folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def altered(change):
    """Rewrite the first tensor, or leave it out."""

    def spoil(folder):
        tensors, key = first(folder)
        new = change(tensors.pop(key))
        write(folder, tensors=tensors if new is None else tensors | {key: new.contiguous()})

    return spoil


def one_entry(value):
    return altered(lambda tensor: torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 5, value, tensor))


def foreign(folder):
    tensors, key = first(folder)
    write(folder, tensors=tensors | {"base_model.model.other.lora_A.weight": tensors[key].clone()})


def prefix(folder):
    write(folder, tensors={key.removeprefix("base_model."): t for key, t in first(folder)[0].items()})


SPOILED = {
    "no config": lambda folder: (folder / "adapter_config.json").unlink(),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "no folder": shutil.rmtree,
    "pickle": pickled,
    "truncated": lambda folder: cut(folder, -8),
    "cut header": lambda folder: cut(folder, 40),
    "empty": lambda folder: cut(folder, 0),
    "lost": altered(lambda tensor: None),
    "nothing in it": lambda folder: write(folder, tensors={}),
    "foreign": foreign,
    "prefix": prefix,
    "shape": altered(lambda tensor: tensor.T),
    "nan": one_entry(torch.nan),
    "inf": one_entry(-torch.inf),
    "integers": altered(lambda tensor: tensor.long()),
    "not json": lambda folder: write(folder, config="{'r': 3}"),
    "not text": lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff\xfe\xff"),
    "a list": lambda folder: write(folder, config=[1]),
    "without r": lambda folder: write(folder, config={k: v for k, v in config_of(folder).items() if k != "r"}),
}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no config", "has no adapter_config.json"),
        ("no weights", "has no adapter_model.safetensors"),
        ("no folder", "has no adapter_config.json"),
        ("pickle", "convert it to safetensors"),
        ("truncated", "is damaged"),
        ("cut header", "is damaged"),
        ("empty", "is damaged"),
        ("lost", "lacks base_model.model.model.layers.0"),
        ("nothing in it", "and 5 more"),
        ("foreign", "foreign tensors: base_model.model.other"),
        ("prefix", "lacks"),
        ("shape", r"has shape \(32, 3\), the module asks for \(3, 32\)"),
        ("nan", "not finite"),
        ("inf", "not finite"),
        ("integers", "not finite floating"),
        ("not json", "is not JSON"),
        ("not text", "is not JSON"),
        ("a list", "is not a JSON object"),
        ("without r", "lacks r"),
        ({"peft_type": "LOHA"}, "describes 'LOHA'"),
        ({"use_dora": True}, "lacks base_model.*lora_magnitude_vector"),
        ({"use_dora": "yes"}, "use_dora='yes' must be true or false"),
        ({"bias": "lora_only"}, "uses bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"exclude_modules": ["x"]}, "exclude_modules"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"a_feature_to_come": 1}, "a_feature_to_come"),
        ({"target_modules": ".*proj"}, "must be a list"),
        ({"target_modules": None}, "must be a list"),
        ({"target_modules": []}, "without targets"),
        ({"target_modules": ["q_proj", "nothing"]}, "'nothing' matches no module"),
        ({"rank_pattern": {"^model.*q_proj": 3}}, "matches no module"),
        ({"rank_pattern": [1]}, "must map"),
        ({"rank_pattern": {"q_proj": "3"}}, "whole number"),
        ({"rank_pattern": {"q_proj": 5}}, "has shape"),
        ({"rank_pattern": {"q_proj": 3, "0.self_attn.q_proj": 5}}, "PEFT reads these patterns otherwise"),
        ({"r": "3"}, "whole number"),
        ({"r": 4}, "has shape"),
        ({"r": True}, "whole number"),
        ({"lora_alpha": "3"}, "must be numbers"),
        ({"lora_alpha": float("nan")}, "alpha must be finite"),
        ({"alpha_pattern": {"q_proj": None}}, "must be numbers"),
        ({"lora_dropout": 1.5}, "dropout"),
        ({"use_rslora": "no"}, "use_rslora"),
    ],
    ids=str,
)
def test_a_bad_file_loads_nothing(what, words, tmp_path):
    spec = LoraSpec(r=3, alpha=2, targets=("q_proj", "v_proj"))
    save(stir(attach(llama(), spec)), tmp_path / "a")
    if isinstance(what, str):
        SPOILED[what](tmp_path / "a")
    else:
        write(tmp_path / "a", config=config_of(tmp_path / "a") | what)
    model = llama()
    with pytest.raises(LoraError, match=words) as error:
        load(model, tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not any(isinstance(part, LoraLayer) for part in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_loading_beside_another_adapter(tmp_path):
    spec = LoraSpec(r=3, alpha=2, targets=("q_proj", "v_proj"))
    save(stir(attach(llama(), spec)), tmp_path / "a")
    lora = stir(attach(llama(), spec))
    want = outputs(lora.module)
    trained = [key for key, p in lora.module.named_parameters() if p.requires_grad]
    load(lora.module, tmp_path / "a", "other")
    assert lora.names == ("default", "other")
    assert same(outputs(lora.module), want)
    assert [key for key, p in lora.module.named_parameters() if p.requires_grad] == trained
    with pytest.raises(LoraError, match="already"):
        load(lora.module, tmp_path / "a", "other")
    with torch.device("meta"):
        bare = nn.Sequential(nn.Linear(3, 3))
    save(attach(nn.Sequential(nn.Linear(3, 3)), LoraSpec(r=1, alpha=1, targets=("0",))), tmp_path / "b")
    with pytest.raises(LoraError, match="meta device"):
        load(bare, tmp_path / "b")


def test_what_is_not_saved(tmp_path):
    spec = LoraSpec(r=3, alpha=2, targets=("q_proj",))
    lora = attach(llama(), spec)
    with pytest.raises(LoraError, match="no adapter 'x'"):
        save(lora, tmp_path / "a", "x")
    lora.set_scale("default", 2)
    with pytest.raises(LoraError, match=r"scaled by 2\.0"):
        save(lora, tmp_path / "a")
    lora.set_scale("default", 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(LoraError, match="nothing is ever written over"):
        save(lora, tmp_path / "full")
    with pytest.raises(LoraError, match="nothing is ever written over"):
        save(lora, tmp_path / "full" / "mine")
    (tmp_path / "full" / "mine").unlink()
    save(lora, tmp_path / "full")
    grouped = attach_hooks(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), LoraSpec(r=2, alpha=1, targets=("0",)))
    with pytest.raises(LoraError, match="no place for the ConvDelta at 0"):
        save(grouped, tmp_path / "a")
    fused = attach(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6)), LoraSpec(r=2, alpha=1, targets=("0",)))
    fused.layers()["0"].add("parts", LoraSpec(r=2, alpha=1, targets=("0",)), parts=(4, 2))
    with pytest.raises(LoraError, match="no place for the FusedDelta at 0"):
        save(fused, tmp_path / "a", "parts")
    odd = nn.ModuleDict({"a_b": nn.Linear(3, 3), "a": nn.ModuleDict({"b": nn.Linear(3, 3)})})
    spec = LoraSpec(r=2, alpha=1, targets=("a.b", "a_b"), rank_pattern={"a.b": 1})
    with pytest.raises(LoraError, match="PEFT reads these patterns otherwise at a_b"):
        save(attach(odd, spec), tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    lora = attach(llama(), LoraSpec(r=3, alpha=2, targets=("q_proj",)))

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("lora_ref.store._config", full)
    with pytest.raises(OSError, match="disk full"):
        save(lora, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
