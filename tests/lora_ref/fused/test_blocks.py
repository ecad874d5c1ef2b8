"""Feed-forward blocks are found by what they compute, give what their parts give, and follow every change of state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.activations import ACT2FN

from conformance.models import load
from lora_ref.fused import FusedModel, accelerate
from lora_ref.fused.blocks import Block, fuse_blocks, is_block, recognise, release_blocks
from lora_ref.model import LoraModel, attach
from lora_ref.spec import LoraSpec

K, INNER, M, R = 5, 7, 6, 2


class Parts(nn.Module):
    """Layers of a block; the subclasses say what is done with them."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.left, self.right, self.back = nn.Linear(K, INNER), nn.Linear(K, INNER), nn.Linear(INNER, K)
        self.act = act


class Gated(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.silu(self.left(x)) * self.right(x))


class Swapped(Parts):
    def forward(self, hidden_states: Tensor) -> Tensor:
        right = self.right(hidden_states)
        return self.back(right * F.gelu(self.left(hidden_states), approximate="tanh"))


class Ungated(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.act(self.left(x)))


class Residual(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.silu(self.left(x)) * self.right(x))


class Dropped(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.back(F.silu(self.left(x)) * self.right(x)), 0.1, self.training)


class Noisy(Parts):
    def forward(self, x: Tensor) -> Tensor:
        y = self.back(F.silu(self.left(x)) * self.right(x))
        return y + 1 if self.training else y


class Twice(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.silu(self.left(x)) * self.left(x))


class Deeper(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.silu(self.left(x.abs())) * self.right(x))


class Branching(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.silu(self.left(x)) * self.right(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "block"),
    [
        (Gated(), Block("left", "right", "back", "silu")),
        (Swapped(), Block("left", "right", "back", "gelu_tanh")),
        (Ungated(nn.GELU()), Block(None, "left", "back", "gelu")),
        (Ungated(nn.SiLU()), Block(None, "left", "back", "silu")),
        (Ungated(ACT2FN["gelu_pytorch_tanh"]), Block(None, "left", "back", "gelu_tanh")),
        (Ungated(nn.ReLU()), None),
        (Ungated(nn.SiLU(inplace=True)), None),
        (Ungated(ACT2FN["gelu_fast"]), None),
        (Twice(), Block("left", "left", "back", "silu")),
        *((kind(), None) for kind in (Residual, Dropped, Noisy, Deeper, Branching)),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_block_is_known_by_what_it_computes(module: nn.Module, block: Block | None) -> None:
    assert recognise(module) == block
    assert module.training


def adapted(kind: type[LoraModel], make: Callable[[], nn.Module] = Gated, **options: Any) -> LoraModel:
    torch.manual_seed(0)
    net = nn.Sequential(make().double())
    targets = options.pop("targets", ("left", "right", "back"))
    model = attach(net, LoraSpec(R, 3.0, targets=targets, **options), kind=kind)
    for delta in model.deltas("default").values():
        nn.init.normal_(delta.b)
    return model


def results(model: LoraModel) -> list[Tensor]:
    x = torch.randn(M, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    model.module.zero_grad()
    y = model.module(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in model.module.parameters() if p.grad is not None)]


def one_function(model: LoraModel) -> bool:
    return model.module(torch.ones(M, K, dtype=torch.float64)).grad_fn.name() == "_FeedForwardBackward"


@pytest.mark.parametrize("make", [Gated, Swapped, lambda: Ungated(nn.GELU())])
@pytest.mark.parametrize("targets", [("left", "right", "back"), ("left", "back"), ("left",), ("back",)])
def test_a_fused_block_gives_what_its_parts_give(make: Callable[[], nn.Module], targets: tuple[str, ...]) -> None:
    fused, plain = adapted(FusedModel, make, targets=targets), adapted(LoraModel, make, targets=targets)
    assert one_function(fused)
    for mine, other in zip(results(fused), results(plain), strict=True):
        torch.testing.assert_close(mine, other)


def test_what_is_kept_is_x_the_r_columns_and_the_inner_values() -> None:
    model = adapted(FusedModel)
    own = {p.untyped_storage()._cdata for p in model.module.parameters()}
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage()._cdata, t), lambda t: t
    ):
        model.module(torch.randn(M, K, dtype=torch.float64, requires_grad=True))
    sizes = sorted(tensor.numel() for key, tensor in kept.items() if key not in own)
    assert sizes == sorted([M * K, M * 2 * R, M * R, M * INNER, M * INNER])


STATES: dict[str, tuple[Callable[[LoraModel], object], bool]] = {
    "disabled": (lambda model: model.disable(), False),
    "scaled": (lambda model: model.set_scale("default", 0.5), True),
    "merged": (lambda model: (model.module.eval(), model.merge()), False),
    "unmerged": (lambda model: (model.merge(), model.unmerge()), True),
    "a hook": (lambda model: model.module[0].right.register_forward_hook(lambda _m, _a, y: 2 * y), False),
    "a hook on the block": (lambda model: model.module[0].register_forward_hook(lambda _m, _a, y: 2 * y), True),
    "a trained base": (lambda model: model.module[0].left.base.requires_grad_(), False),
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_gives_what_the_parts_give(state: str) -> None:
    change, fused = STATES[state]
    models = [adapted(kind) for kind in (FusedModel, LoraModel)]
    for model in models:
        change(model)
    x = torch.randn(M, K, dtype=torch.float64, requires_grad=True)
    mine, other = (model.module(x) for model in models)
    torch.testing.assert_close(mine, other)
    names = {node.name() for node, _ in [(mine.grad_fn, 0), *mine.grad_fn.next_functions] if node is not None}
    assert ("_FeedForwardBackward" in names) is fused


def test_dropout_is_one_mask_for_gate_and_up() -> None:
    model = adapted(FusedModel, dropout=0.5)
    assert one_function(model)
    torch.manual_seed(0)
    first = results(model)
    torch.manual_seed(0)
    assert all(torch.equal(one, other) for one, other in zip(first, results(model), strict=True))
    model.module.eval()
    assert one_function(model)


def test_adapters_that_differ_by_layer() -> None:
    found = []
    for kind in (FusedModel, LoraModel):
        model = adapted(kind)
        attach(model.module, LoraSpec(3, 1.0, targets=("right", "back")), "second", kind=kind)
        model.activate("default", "second")
        for delta in model.deltas("second").values():
            torch.nn.init.ones_(delta.b)
            torch.nn.init.ones_(delta.a)
        found.append(results(model))
        assert one_function(model) is (kind is FusedModel)
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_block_is_itself_again_without_adapters() -> None:
    model = adapted(FusedModel)
    block = model.module[0]
    assert is_block(block)
    model.delete("default")
    assert "forward" not in vars(block)
    assert type(block.left) is nn.Linear


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_layers(way: Callable[[Any], Any]) -> None:
    model = adapted(FusedModel)
    twin, want = way(model), results(model)[0]
    for delta in model.deltas("default").values():
        nn.init.zeros_(delta.b)
    assert one_function(twin)
    assert torch.equal(results(twin)[0], want)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does it itself
def test_a_block_compiles_to_one_graph() -> None:
    model = adapted(FusedModel)
    torch.compiler.reset()
    x = torch.randn(M, K, dtype=torch.float64)
    assert torch.equal(torch.compile(model.module, backend="aot_eager", fullgraph=True)(x), model.module(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the libraries among themselves
def test_a_llama_that_peft_adapted() -> None:
    found = []
    for fast in (False, True):
        loaded = load("tiny-llama", "float32")
        torch.manual_seed(0)
        model = get_peft_model(loaded.fresh(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        if fast:
            report = accelerate(model)
            assert len(report.blocks) == 2
            assert len(report.fused) == 14
        ids = loaded.inputs(0)["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    for plain, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)
    report.undo()
    assert not any(is_block(module) for module in model.modules())


def test_fusing_and_releasing_again() -> None:
    model = adapted(FusedModel)
    release_blocks(model.module)
    assert not one_function(model)
    assert fuse_blocks(model.module) == ["0"]
    assert fuse_blocks(model.module) == ["0"]
    assert one_function(model)
