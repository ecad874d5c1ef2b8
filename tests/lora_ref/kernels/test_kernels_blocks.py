"""Every configuration, every way to split a sum, and the kernels one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_judges import judge_linear, judge_routed

from conformance.cases import Case
from conformance.routed import Routed

KERNELS = ("SHRINK", "LINEAR", "EXPAND", "GRADIENT")
LINEAR_CASE = Case(70, 150, 20, 40.0, (75,), bias=True)
ROUTED_CASE = Routed(
    70, 150, 20, 40.0, (75,), ranks=(3,), alphas=(6.0,), index=tuple(nth % 7 % 3 - 1 for nth in range(75))
)


def configurations() -> Iterator[object]:
    try:
        from lora_ref.fused.kernels import calls
    except ImportError:  # the fixture says so
        return
    for name in KERNELS:
        kernel = getattr(calls, name)
        seen = {str(config.kwargs): config for configs in kernel.configs.values() for config in configs}
        for blocks, config in seen.items():
            yield pytest.param(kernel, config, id=f"{name.lower()}-{blocks}")


@pytest.mark.parametrize(("kernel", "config"), [*configurations()])
def test_every_configuration_is_right(device: str, monkeypatch: pytest.MonkeyPatch, kernel: Any, config: Any) -> None:
    """In the interpreter its block sizes; on a GPU all of it. Sizes are on both sides of most blocks."""
    from lora_ref.fused.kernels import calls

    alone = dict.fromkeys(kernel.configs, (config,))
    monkeypatch.setattr(kernel, "configs", alone)
    monkeypatch.setattr(kernel, "interpreted", config)
    vars(kernel).pop("tuned", None)
    if kernel is not calls.EXPAND:
        judge_linear(LINEAR_CASE, device)
    if kernel is not calls.LINEAR:
        judge_routed(ROUTED_CASE, device, reverse=False)
    vars(kernel).pop("tuned", None)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_sum_in_parts_is_the_whole_sum(device: str, dtype: torch.dtype, parts: int) -> None:
    from lora_ref.fused.kernels import calls

    draw = torch.Generator().manual_seed(parts)
    x, a, v = (
        torch.randint(-1, 2, shape, generator=draw).to(device, dtype) for shape in ((130, 300), (5, 300), (130, 40))
    )
    routes = calls.Routes(*_routing(130, device), torch.tensor([5, 3], dtype=torch.int32, device=device))
    wanted = (x.double() @ a.double().T / 2).to(dtype)
    assert torch.equal(calls.shrink(x, a, 0.5, parts=parts), wanted)
    assert torch.equal(calls.gradient(wanted, v, parts=parts), (wanted.double().T @ v.double()).to(dtype))
    own = calls.gradient(wanted, v, routes, transposed=True, parts=parts)
    for nth in range(2):
        rows = routes.order[int(routes.starts[nth + 1]) : int(routes.starts[nth + 2])].long()
        assert torch.equal(own[nth], (v[rows].double().T @ wanted[rows].double()).to(dtype))


def _routing(rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    from lora_ref.fused.kernels import Routing

    routing = Routing.of([nth * 5 % 3 - 1 for nth in range(rows)], 2, device)
    return routing.order, routing.starts


def test_long_sums_with_few_results_are_split_and_keep_their_bits(device: str) -> None:
    from lora_ref.fused.kernels import calls
    from lora_ref.fused.kernels.launch import split

    assert split(1100, 3, 5) == 2
    assert split(1100, 4096, 4096) == split(300, 3, 5) == 1
    draw = torch.Generator().manual_seed(0)
    x, a = (torch.randn(shape, generator=draw).to(device) for shape in ((3, 1100), (5, 1100)))
    first = calls.shrink(x, a, 0.3)
    assert torch.equal(first, calls.shrink(x, a, 0.3, parts=2))
    assert not torch.equal(first, calls.shrink(x, a, 0.3, parts=1))  # or this test would see nothing
    assert all(torch.equal(first, calls.shrink(x, a, 0.3)) for _ in range(3))
