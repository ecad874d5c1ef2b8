"""Every form in which a kernel is compiled: uses x dtypes x ranks x configurations.

The calls themselves are made, with tensors that have shapes and no memory, and what they would start is written down.
So the arguments, and what the compiler is told of them, are those of real calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from lora_ref.fused.kernels import calls
from lora_ref.fused.kernels.launch import Kernel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PAIRS = (
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("float16", "float32"),
)  # of a base and its adapters
# Ranks in the smaller block and in the larger; rows of the factors are aligned at 16 and 64, and not at 8 and 40.
_RANKS = {("bfloat16", "bfloat16", True): (8, 16, 40, 64), ("bfloat16", "bfloat16", False): (8, 40)}
_FEWER_RANKS = {True: (8, 64), False: (40,)}  # with other dtypes
_ROWS, _ADAPTERS = 1000, 6
_SIZES = {True: (4096, 2048), False: (4095, 2047)}  # features in and out, whose rows are aligned or not
_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}


@dataclass(frozen=True)
class Instance:
    """One kernel as one compilation sees it; the last three fields are what the compiler is told of its arguments."""

    kernel: str
    use: str
    base: str
    adapter: str
    rank: int
    aligned: bool
    config: triton.Config = field(compare=False)
    signature: tuple[tuple[str, str], ...] = field(repr=False)
    constants: tuple[tuple[str, Any], ...] = field(repr=False)
    even: tuple[int, ...] = field(repr=False)  # the arguments that are multiples of 16

    @property
    def function(self) -> Any:
        return getattr(calls, self.kernel.upper()).function

    @property
    def compiled(self) -> tuple[Any, ...]:
        """What the result depends on."""
        return self.kernel, self.signature, self.constants, self.even, str(self.config)


def all_instances() -> list[Instance]:
    """Each only once, named by the first use that needs it."""
    found: dict[tuple[Any, ...], Instance] = {}
    for aligned in (True, False):
        for base, adapter in PAIRS:
            for rank in _RANKS.get((base, adapter, aligned), _FEWER_RANKS[aligned]):
                for instance in _of(base, adapter, rank, aligned=aligned):
                    found.setdefault(instance.compiled, instance)
    return list(found.values())


def _of(base: str, adapter: str, rank: int, *, aligned: bool) -> Iterator[Instance]:
    for use, call in _uses(DTYPES[base], DTYPES[adapter], rank, *_SIZES[aligned]).items():
        for kernel, kind, arguments in _recorded(call):
            given = kernel.complete(kind, arguments)
            for config in kernel.configs[kernel.chosen(kind, arguments)]:
                name = kernel.function.__name__.removesuffix("_kernel")
                source = _source(kernel.function, {**given, **config.kwargs})
                yield Instance(name, use, base, adapter, rank, aligned, config, *source)


def _uses(
    base: torch.dtype, adapter: torch.dtype, r: int, k: int, n: int
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    def some(*shape: int, dtype: torch.dtype = base) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    m, adapters = _ROWS, _ADAPTERS
    x, dy, w, bias, h = some(m, k), some(m, n), some(n, k), some(n), some(m, r, dtype=adapter)
    a, b = some(r, k, dtype=adapter), some(n, r, dtype=adapter)
    many_a, many_b = some(adapters, r, k, dtype=adapter), some(adapters, n, r, dtype=adapter)
    order, starts, ranks = (some(size, dtype=torch.int32) for size in (m, adapters + 2, adapters))
    routes, scalings = calls.Routes(order, starts, ranks), some(adapters, dtype=torch.float32)
    return {
        "forward": lambda: (calls.shrink(x, a, 2.0), calls.linear_expand(x, w, bias, h, b)),
        "backward": lambda: (
            calls.shrink(dy, b.T, 2.0),
            calls.linear_expand(dy, w.T, None, h, a.T),
            calls.gradient(h, x),
            calls.gradient(h, dy, transposed=True),
        ),
        "routed forward": lambda: (
            calls.shrink(x, many_a, scalings, routes),
            calls.expand(dy, h, many_b, routes, base),
        ),
        "routed backward": lambda: (
            calls.shrink(dy, many_b.transpose(1, 2), scalings, routes),
            calls.expand(None, h, many_a.transpose(1, 2), routes, base),
            calls.gradient(h, x, routes),
            calls.gradient(h, dy, routes, transposed=True),
        ),
    }


def _recorded(call: Callable[[], object]) -> list[tuple[Kernel, str, dict[str, Any]]]:
    seen: list[tuple[Kernel, str, dict[str, Any]]] = []

    def record(kernel: Kernel, grid: Any, kind: str, **arguments: Any) -> None:  # noqa: ARG001
        seen.append((kernel, kind, arguments))

    with patch.object(Kernel, "__call__", record):
        call()
    return seen


def _source(function: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    """Types, constants and alignment, told to the compiler as a real call tells them."""
    signature, constants, even = [], [], []
    for nth, parameter in enumerate(function.params):
        name, value = parameter.name, values[parameter.name]
        is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature.append((name, "constexpr"))
            constants.append((name, value))
            continue
        if isinstance(value, Tensor):
            signature.append((name, f"*{_SHORT[value.dtype]}"))
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
        address = value.data_ptr() if isinstance(value, Tensor) else value
        if not isinstance(value, float) and not parameter.do_not_specialize and address % 16 == 0:
            even.append(nth)
    return tuple(signature), tuple(constants), tuple(even)
