"""One wrapped module: what it computes, what trains, and that a merge is exact, reversible and never stale."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN003, ANN201, ANN202

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from lora_ref.errors import LoraError
from lora_ref.expert_stack import ExpertStack
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec

SPEC = LoraSpec(r=3, alpha=6)


def experts():
    stack = ExpertStack(3, 5, 7)
    stack.index = torch.tensor([2, 0])
    return stack


KINDS = {
    "linear": (lambda: nn.Linear(5, 7), (2, 5)),
    "gpt": (lambda: Conv1D(5, 5), (2, 5)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2), (2, 4, 5, 5)),
    "experts": (experts, (2, 5)),
    "embedding": (lambda: nn.Embedding(9, 4, padding_idx=1), None),
}


def lattice(shape, dtype=torch.float64):
    return torch.randint(-2, 3, shape).to(dtype)


def layer(kind="linear", names=("x", "y"), active=("x", "y"), dtype=torch.float64, **kw):
    torch.manual_seed(0)
    wrapped = LoraLayer(KINDS[kind][0]().to(dtype))
    for name in names:
        wrapped.add(name, SPEC, **kw)
    with torch.no_grad():
        for p in wrapped.parameters():
            p.copy_(lattice(p.shape))
    wrapped.activate(*active)
    return wrapped.eval()


def example(kind="linear", dtype=torch.float64):
    torch.manual_seed(1)
    return torch.tensor([[1, 2, 8]]) if kind == "embedding" else lattice(KINDS[kind][1], dtype)


def snapshot(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[key], before[key]) for key in now)


def test_fresh_layer_is_the_base():
    base = nn.Linear(5, 7)
    x = torch.randn(3, 5)
    want = base(x)
    wrapped = LoraLayer(base)
    assert torch.equal(wrapped(x), want)
    wrapped.add("x", LoraSpec(r=2, alpha=3))
    assert torch.equal(wrapped(x), want)


@pytest.mark.parametrize("kind", KINDS)
def test_active_deltas_add_up(kind):
    wrapped, x = layer(kind), example(kind)
    base, dx, dy = wrapped.base(x), wrapped.adapters["x"](x), wrapped.adapters["y"](x)
    for names, want in {(): base, ("x",): base + dx, ("y",): base + dy, ("y", "x"): base + dx + dy}.items():
        wrapped.activate(*names)
        assert torch.equal(wrapped(x), want)
    wrapped.set_scale("x", -0.5)
    assert torch.equal(wrapped(x), base + dy - dx / 2)
    wrapped.set_scale("x", 0)
    assert torch.equal(wrapped(x), base + dy)
    wrapped.disable()
    assert torch.equal(wrapped(x), base)
    wrapped.enable()
    wrapped.set_scale("x", 1)
    wrapped.delete("y")
    assert wrapped.adapters.active == ("x",)
    assert torch.equal(wrapped(x), base + dx)


def test_what_trains():
    wrapped = LoraLayer(nn.Linear(3, 3))

    def training():
        return {name.split(".")[1] for name, p in wrapped.named_parameters() if p.requires_grad}

    wrapped.add("x", SPEC)
    wrapped.add("frozen", SPEC, trainable=False)
    wrapped.add("y", SPEC)
    assert wrapped.adapters.active == ("x",)
    assert training() == {"x"}
    wrapped.activate("frozen")
    assert training() == set()
    wrapped.activate("frozen", "y", "x", "y")
    assert wrapped.adapters.active == ("frozen", "y", "x")
    assert training() == {"x", "y"}
    assert not any(p.requires_grad for p in wrapped.base.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [(), ("x",), ("y",), ("x", "y")])
def test_merge_changes_nothing_that_can_be_seen(kind, names):
    wrapped, x = layer(kind), example(kind)
    want, before = wrapped(x), snapshot(wrapped)
    base = wrapped.base(x)
    weight = wrapped.base.weight
    for _ in range(2):
        wrapped.merge(*names)
        assert wrapped.merged == (names or ("x", "y"))
        assert torch.equal(wrapped(x), want)
        assert unchanged(wrapped, before)
    wrapped.disable()
    assert torch.equal(wrapped(x), base)
    wrapped.enable()
    wrapped.merge()
    assert wrapped.merged == ("x", "y")
    assert torch.equal(wrapped(x), want)
    assert torch.equal(wrapped.merged_weight, wrapped.effective_weight())
    plain = wrapped.export()
    assert type(plain) is type(wrapped.base)
    assert torch.equal(plain(x), want)
    assert plain.weight.data_ptr() != wrapped.merged_weight.data_ptr()
    wrapped.unmerge()
    assert wrapped.merged == ()
    assert torch.equal(wrapped(x), want)
    assert wrapped.base.weight is weight
    assert unchanged(wrapped, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merge_rounds_once(dtype):
    wrapped = layer(dtype=dtype)
    with torch.no_grad():
        for p in wrapped.parameters():
            p.copy_(torch.randn(p.shape))
    w, (x, y) = wrapped.base.weight.double(), (wrapped.adapters[n] for n in "xy")
    exact = w + 2 * x.b.double() @ x.a.double() + 2 * y.b.double() @ y.a.double()
    wrapped.merge()
    gap = (wrapped.merged_weight.double() - exact).abs()
    up = torch.nextafter(wrapped.merged_weight, torch.full_like(wrapped.merged_weight, torch.inf)).double()
    down = torch.nextafter(wrapped.merged_weight, torch.full_like(wrapped.merged_weight, -torch.inf)).double()
    assert torch.all(gap <= torch.minimum((up - exact).abs(), (down - exact).abs()))  # no closer value in dtype


def test_merge_refuses_what_is_not_finite_and_changes_nothing():
    wrapped, x = layer(dtype=torch.float16), example(dtype=torch.float16)
    want = wrapped(x)
    wrapped.merge("x")
    with torch.no_grad():
        wrapped.adapters["y"].a.fill_(60000)
        wrapped.adapters["y"].b.fill_(60000)
    before = snapshot(wrapped)
    with pytest.raises(LoraError, match=r"x, y would give a weight that is not finite in torch\.float16"):
        wrapped.merge()
    assert wrapped.merged == ("x",)
    assert unchanged(wrapped, before)
    with pytest.raises(LoraError, match="not finite"):
        wrapped.export()
    wrapped.adapters["y"].b.data.zero_()
    wrapped.activate("x")
    assert torch.equal(wrapped(x), wrapped.export()(x))
    assert not torch.equal(want, wrapped(x))


def test_what_is_refused_while_merged():
    wrapped = layer()
    wrapped.merge("x")
    for act in (
        lambda: wrapped.delete("x"),
        lambda: wrapped.set_scale("x", 2),
        lambda: wrapped.activate("y"),
        wrapped.activate,
    ):
        with pytest.raises(LoraError, match="'x' is merged; unmerge first"):
            act()
    with pytest.raises(LoraError, match="already"):
        wrapped.add("x", SPEC)
    wrapped.train()
    with pytest.raises(LoraError, match="unmerge first"):
        wrapped(example())
    with torch.no_grad():
        wrapped(example())
    wrapped.disable()
    wrapped(example())
    wrapped.enable()
    wrapped.eval()
    wrapped.set_scale("y", 2)
    wrapped.activate("x")
    wrapped.delete("y")
    assert wrapped.merged == ("x",)


def test_a_stale_merge_is_noticed():
    def step(w):
        w.adapters["x"].b.grad = torch.ones_like(w.adapters["x"].b)
        torch.optim.SGD(w.adapters["x"].parameters(), lr=1.0).step()

    def load(w):
        w.load_state_dict({k: v + 1 for k, v in w.state_dict().items()})

    def assign(w):
        w.load_state_dict({k: v + 1 for k, v in w.state_dict().items()}, assign=True)

    def base(w):
        w.base.weight.data = w.base.weight + 1

    def factor(w):
        w.adapters["x"].factor = 2.0

    def half(w):
        w.bfloat16()

    for change in (step, load, assign, base, factor, half):
        wrapped = layer()
        wrapped.merge()
        change(wrapped)
        x = example(dtype=wrapped.base.weight.dtype)
        with pytest.raises(LoraError, match="changed since the merge"):
            wrapped(x)
        with pytest.raises(LoraError, match="changed since the merge"):
            copy.deepcopy(wrapped)(x)
        wrapped.unmerge()
        want = wrapped(x)
        wrapped.merge()
        assert change is half or torch.equal(wrapped(x), want)


def test_a_tied_weight_never_moves():
    embedding, head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
    head.weight = embedding.weight
    wrapped = LoraLayer(head)
    wrapped.add("x", SPEC)
    nn.init.ones_(wrapped.adapters["x"].b)
    want = embedding.weight.clone()
    wrapped.eval().merge()
    wrapped(torch.ones(1, 5))
    assert torch.equal(embedding.weight, want)
    assert head.weight is embedding.weight
    assert wrapped.export().weight is not embedding.weight


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_compute_the_same_and_share_nothing(how, merged):
    wrapped, x = layer(), example()
    wrapped.set_scale("x", 4)
    if merged:
        wrapped.merge("x")
    want = wrapped(x)
    if how == "deepcopy":
        other = copy.deepcopy(wrapped)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(wrapped))
    else:
        file = io.BytesIO()
        torch.save(wrapped, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(x), want)
    assert other.merged == wrapped.merged
    assert other.adapters.specs == wrapped.adapters.specs
    other.unmerge()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(wrapped(x), want)


def test_a_move_keeps_the_merge():
    wrapped, x = layer(), example()
    want = wrapped(x)
    wrapped.merge()
    wrapped._apply(lambda t: t.clone())  # what a move to a device does
    assert torch.equal(wrapped(x), want)


def test_state_dict_round_trip():
    wrapped, x = layer(), example()
    other = layer(names=("x", "y"))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    wrapped.merge()
    assert set(wrapped.state_dict()) == {
        "base.weight",
        "base.bias",
        *(f"adapters.{n}.{f}" for n in "xy" for f in "ab"),
    }
    other.load_state_dict(wrapped.state_dict())
    assert torch.equal(other(x), wrapped(x))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", [None, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_output_has_the_dtype_of_the_bare_base(kind, base, adapter, autocast, merged):
    wrapped, x = LoraLayer(KINDS[kind][0]().to(base)).eval(), example(kind, base)
    wrapped.add("x", SPEC, dtype=adapter)
    nn.init.ones_(wrapped.adapters["x"].b)
    if merged:
        wrapped.merge()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        assert wrapped(x).dtype == wrapped.base(x).dtype


def test_sum_is_rounded_once():
    wrapped = LoraLayer(nn.Linear(1, 1, bias=False).bfloat16())
    for name in ("x", "y"):
        wrapped.add(name, LoraSpec(r=1, alpha=1))
        with torch.no_grad():
            wrapped.adapters[name].a.fill_(1)
            wrapped.adapters[name].b.fill_(0.5)
    wrapped.activate("x", "y")
    with torch.no_grad():
        wrapped.base.weight.fill_(128)
    assert wrapped(torch.ones(1, 1).bfloat16()).item() == 129  # 128 + 1/2 would be 128 in bfloat16, twice


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing(reentrant, dropout):
    wrapped = LoraLayer(nn.Linear(5, 7).double())
    wrapped.add("x", LoraSpec(r=3, alpha=6, dropout=dropout))
    nn.init.ones_(wrapped.adapters["x"].b)
    results = []
    for run in (wrapped, lambda x: checkpoint(wrapped, x, use_reentrant=reentrant)):
        x = example().requires_grad_()
        wrapped.zero_grad()
        torch.manual_seed(2)
        out = run(x)
        out.sum().backward()
        results.append([out, x.grad, *(p.grad for p in wrapped.adapters.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"experts"}))  # how many rows an expert has is no shape but data
def test_compiled_is_eager(kind):
    wrapped, x = layer(kind), example(kind)
    torch._dynamo.reset()  # recompilations are counted over the process
    compiled = torch.compile(wrapped, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), wrapped(x))
    wrapped.merge("x")
    assert torch.equal(compiled(x), wrapped(x))
    wrapped.unmerge()
    wrapped.set_scale("x", 8)
    wrapped.activate("x")
    assert torch.equal(compiled(x), wrapped(x))
    wrapped.disable()
    assert torch.equal(compiled(x), wrapped.base(x))


def test_a_reader_of_the_weight_gets_the_effective_one():
    wrapped, x = layer(), example()
    assert torch.equal(nn.functional.linear(x, wrapped.weight, wrapped.bias), wrapped(x))
    wrapped.weight.sum().backward()
    assert wrapped.adapters["x"].b.grad.any()
    wrapped.disable()
    assert wrapped.weight is not None
    assert torch.equal(wrapped.weight, wrapped.base.weight)


def test_meta_and_inference_mode():
    with torch.device("meta"):
        wrapped = LoraLayer(nn.Linear(5, 7))
    wrapped.add("x", SPEC)
    wrapped.eval().merge()
    assert wrapped(torch.empty(2, 5, device="meta")).shape == (2, 7)
    with torch.inference_mode():
        inner = layer()
        want = inner(example())
        inner.merge()
        assert torch.equal(inner(example()), want)


@pytest.mark.parametrize("name", ["", "a.b", "pop", "training", "forward"])
def test_names_that_cannot_be(name):
    with pytest.raises(LoraError, match="cannot be called"):
        layer().add(name, SPEC)


def test_unknown_names():
    wrapped = layer()
    for act in (wrapped.activate, wrapped.delete, wrapped.merge, lambda n: wrapped.set_scale(n, 1)):
        with pytest.raises(LoraError, match="no adapter 'z'; there are: x, y"):
            act("z")
    wrapped.activate("x")
    with pytest.raises(LoraError, match="'y' is not active"):
        wrapped.merge("y")


def test_modes_reach_new_adapters():
    wrapped = LoraLayer(nn.Linear(3, 3).eval())
    wrapped.add("x", LoraSpec(r=1, alpha=1, dropout=0.5))
    assert not wrapped.training
    assert not wrapped.adapters["x"].training
    assert wrapped.train().adapters["x"].training
