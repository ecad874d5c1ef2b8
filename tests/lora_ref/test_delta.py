"""Each kind of branch, in whole numbers and powers of two, so that every comparison is of bits."""

# What pytest hands in needs no types, and mypy does not read the tests.
# ruff: noqa: ANN001, ANN003, ANN201

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from lora_ref.delta import ConvDelta, EmbeddingDelta, FusedDelta, LinearDelta, make_delta
from lora_ref.errors import LoraError
from lora_ref.spec import LoraSpec

SPEC = LoraSpec(r=3, alpha=6)  # s = 2
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def lattice(tensor, low=-2, high=3):
    return torch.randint(low, high, tensor.shape).to(tensor.dtype)


def filled(module):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(lattice(p))
    return module


def conv(dim, **kw):
    return [nn.Conv1d, nn.Conv2d, nn.Conv3d][dim - 1](**kw)


CASES = {
    "linear": (lambda: nn.Linear(5, 7), (2, 5)),
    "square": (lambda: nn.Linear(5, 5, bias=False), (2, 3, 5)),
    "thin": (lambda: nn.Linear(2, 1), (2,)),
    "rows0": (lambda: nn.Linear(5, 7), (0, 5)),
    "rows00": (lambda: nn.Linear(5, 7), (2, 0, 5)),
    "conv1d-gpt": (lambda: Conv1D(7, 5), (2, 3, 5)),
    "conv1d-gpt-square": (lambda: Conv1D(5, 5), (0, 5)),
}
for dim in (1, 2, 3):
    for groups in (1, 2, 3):
        for mode in ("zeros", "reflect", "circular", "replicate"):
            CASES[f"conv{dim}-{groups}-{mode}"] = (
                lambda dim=dim, groups=groups, mode=mode: conv(
                    dim,
                    in_channels=6,
                    out_channels=12,
                    kernel_size=3,
                    stride=2,
                    padding=1,
                    dilation=2,
                    groups=groups,
                    padding_mode=mode,
                ),
                (2, 6, *[5, 6, 7][:dim]),
            )
CASES |= {
    "conv-same": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2, padding_mode="circular"), (2, 4, 5, 6)),
    "conv-same-zeros": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), (2, 4, 5, 6)),
    "conv-valid": (lambda: nn.Conv2d(4, 6, (1, 3), padding="valid", groups=2), (0, 4, 5, 6)),
    "conv-unbatched": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2), (4, 5, 6)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), (2, 4, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_base_with_the_delta_weight(case):
    make, shape = CASES[case]
    torch.manual_seed(0)
    base = filled(make()).double()
    delta = filled(make_delta(base, SPEC))
    x = lattice(torch.empty(shape, dtype=torch.float64))
    dw = delta.weight()
    assert dw.shape == base.weight.shape
    out = base(x)
    want = functional_call(base, {"weight": base.weight + dw}, (x,))
    assert delta(x).shape == out.shape
    assert torch.equal(out + delta(x), want)
    assert case.endswith(("rows0", "rows00", "gpt-square", "valid")) or not torch.equal(out, want)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_formed_weight(case):
    make, shape = CASES[case]
    torch.manual_seed(1)
    base = filled(make()).double().requires_grad_(requires_grad=False)
    delta = filled(make_delta(base, SPEC))
    x = lattice(torch.empty(shape, dtype=torch.float64)).requires_grad_()
    out = base(x) + delta(x)
    dy = lattice(out)
    want = torch.autograd.grad(
        functional_call(base, {"weight": base.weight + delta.weight()}, (x,)), (x, delta.a, delta.b), dy
    )
    for got, exact in zip(torch.autograd.grad(out, (x, delta.a, delta.b), dy), want, strict=True):
        assert torch.equal(got, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_formed_wide(dtype):
    base = nn.Linear(3, 2).to(dtype)
    delta = make_delta(base, LoraSpec(r=2, alpha=1))
    with torch.no_grad():
        delta.a.copy_(torch.tensor([[1.0, 0, 1], [0, 1, 1]]))
        delta.b.copy_(torch.tensor([[256.0, 1], [1, 256]]))
    want = torch.tensor([[128.0, 0.5, 128.5], [0.5, 128, 128.5]])  # 128.5 does not fit bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        got = delta.weight()
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(got, want.to(got.dtype))


def test_linear_against_the_formula():
    base = filled(nn.Linear(4, 5)).double()
    delta = filled(make_delta(base, SPEC))
    assert torch.equal(delta.weight(), 2 * delta.b @ delta.a)
    gpt = filled(make_delta(filled(Conv1D(5, 4)).double(), SPEC))
    assert gpt.a.shape == (3, 4)
    assert gpt.b.shape == (5, 3)
    assert torch.equal(gpt.weight(), (2 * gpt.b @ gpt.a).T)


def test_grouped_conv_against_the_formula():
    delta = filled(make_delta(nn.Conv2d(6, 4, 3, groups=2).double(), SPEC))
    assert isinstance(delta, ConvDelta)
    want = 2 * torch.einsum("or,rikl->oikl", delta.b[:, :, 0, 0], delta.a)
    assert torch.equal(delta.weight(), want)


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embedding(padding_idx):
    base = filled(nn.Embedding(11, 4, padding_idx=padding_idx)).double()
    delta = filled(make_delta(base, SPEC))
    assert isinstance(delta, EmbeddingDelta)
    ids = torch.tensor([[2, 3, 3], [10, 0, 2]])
    assert torch.equal(delta.weight(), (2 * delta.b @ delta.a).T)
    assert torch.equal(delta(ids), delta.weight()[ids])
    assert delta(ids[:0]).shape == (0, 3, 4)
    delta(ids).sum().backward()
    assert bool((delta.a.grad[:, 2] == 0).all()) is (padding_idx == 2)
    assert bool(delta.a.grad[:, 3].any())
    assert not bool(delta.a.grad[:, 1].any())


@pytest.mark.parametrize("on", [(1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 1), (1, 1, 0)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 9), lambda: Conv1D(9, 5)])
def test_fused_parts_land_in_their_own_rows(on, make):
    base = filled(make()).double()
    delta = filled(make_delta(base, SPEC, parts=(5, 1, 3), enabled=tuple(map(bool, on))))
    assert isinstance(delta, FusedDelta)
    a, b = list(delta.a.split(3)), list(delta.b.split([n for n, o in zip((5, 1, 3), on, strict=True) if o]))
    rows = [2 * b.pop(0) @ a.pop(0) if o else torch.zeros(n, 5).double() for n, o in zip((5, 1, 3), on, strict=True)]
    want = torch.cat(rows)
    assert torch.equal(delta.weight(), want.T if isinstance(base, Conv1D) else want)
    x = lattice(torch.empty(2, 3, 5).double())
    assert torch.equal(delta(x), F.linear(x, want))
    assert delta(x[:0]).shape == (0, 3, 9)


def test_strided_inputs():
    base = nn.Linear(5, 7).double()
    delta = filled(make_delta(base, SPEC))
    for x in (torch.ones(5, 4).double().T, torch.ones(4, 10).double()[:, ::2], torch.ones(1, 5).double().expand(4, 5)):
        assert torch.equal(delta(x), delta(x.contiguous()))


def test_initial_values():
    torch.manual_seed(0)
    delta = make_delta(nn.Linear(400, 50), LoraSpec(r=50, alpha=1))
    bound = 1 / 400**0.5
    assert delta.a.abs().max() <= bound
    assert delta.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # of 20,000 uniform draws
    embedding = make_delta(nn.Embedding(400, 50), LoraSpec(r=50, alpha=1))
    assert embedding.a.std().item() == pytest.approx(1, rel=0.05)
    for each in (delta, embedding):
        assert not each.b.any()


def test_same_seed_same_values_also_after_the_meta_device():
    torch.manual_seed(0)
    want = make_delta(nn.Linear(4, 5), SPEC).a
    with torch.device("meta"):
        base = nn.Linear(4, 5)
    delta = make_delta(base, SPEC)
    assert delta.a.is_meta
    delta.to_empty(device="cpu")
    torch.manual_seed(0)
    nn.Linear(4, 5)
    delta.reset_parameters()
    assert torch.equal(delta.a, want)
    assert not delta.b.any()


def test_dropout_acts_on_the_input_of_a_only():
    delta = filled(make_delta(nn.Linear(64, 3).double(), LoraSpec(r=2, alpha=4, dropout=0.5)))
    x = torch.ones(5, 64).double()
    torch.manual_seed(3)
    got = delta(x)
    torch.manual_seed(3)
    assert torch.equal(got, F.linear(F.dropout(x, 0.5), delta.weight()))
    assert not torch.equal(delta(x), delta(x))
    delta.eval()
    assert torch.equal(delta(x), F.linear(x, delta.weight()))
    state = torch.get_rng_state()
    make_delta(nn.Linear(3, 3, device="meta"), SPEC)(torch.empty(1, 3, device="meta"))
    assert torch.equal(state, torch.get_rng_state())


def test_dtype_and_device_of_the_adapter():
    base = nn.Linear(3, 4).bfloat16()
    assert make_delta(base, SPEC).a.dtype == torch.bfloat16
    delta = make_delta(base, SPEC, dtype=torch.float32)
    assert {p.dtype for p in delta.parameters()} == {torch.float32}
    assert delta(torch.ones(2, 3).bfloat16()).dtype == torch.float32


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))


def quantised():
    base = nn.Linear(3, 3)
    base.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return base


@pytest.mark.parametrize(
    ("make", "spec", "kw", "words"),
    [
        (lambda: nn.LayerNorm(3), SPEC, {}, "LayerNorm cannot carry LoRA; Linear, Embedding"),
        (lambda: nn.ConvTranspose1d(3, 3, 1), SPEC, {}, "ConvTranspose1d cannot"),
        (lambda: OwnForward(3, 3), SPEC, {}, "OwnForward has a forward of its own"),
        (lambda: nn.MultiheadAttention(4, 2).out_proj, SPEC, {}, "never called"),
        (parametrized, SPEC, {}, "not a plain floating-point parameter"),
        (quantised, SPEC, {}, "not a plain floating-point parameter"),
        (lambda: nn.LazyLinear(3), SPEC, {}, "not a plain floating-point parameter"),
        (lambda: nn.Linear(3, 3), SPEC, {"dtype": torch.int8}, "got torch.int8"),
        (lambda: nn.Embedding(3, 3), LoraSpec(r=2, alpha=3, dropout=0.1), {}, "set dropout to 0"),
        (lambda: nn.Embedding(3, 3, max_norm=1.0), SPEC, {}, "max_norm"),
        (lambda: nn.Embedding(3, 3, scale_grad_by_freq=True), SPEC, {}, "scale_grad_by_freq"),
        (lambda: nn.Embedding(3, 3), SPEC, {"parts": (1, 2)}, "Embedding has none"),
        (lambda: nn.Linear(3, 3), SPEC, {"parts": (1, 1)}, "add up to the 3 rows"),
        (lambda: nn.Linear(3, 3), SPEC, {"parts": (4, -1)}, "add up to the 3 rows"),
        (lambda: nn.Linear(3, 3), SPEC, {"parts": (1, 2), "enabled": (True,)}, "for each part"),
        (lambda: nn.Linear(3, 3), SPEC, {"parts": (1, 2), "enabled": (False, False)}, "at least once"),
        (lambda: nn.Linear(3, 3), SPEC, {"enabled": (True,)}, "without parts"),
    ],
)
def test_refusals(make, spec, kw, words):
    with pytest.raises(LoraError, match=words) as error:
        make_delta(make(), spec, **kw)
    assert "\n" not in str(error.value)


def test_names_of_kinds():
    assert isinstance(make_delta(nn.Linear(3, 3), SPEC), LinearDelta)
    assert isinstance(make_delta(nn.Embedding(3, 3, sparse=True), SPEC), EmbeddingDelta)
