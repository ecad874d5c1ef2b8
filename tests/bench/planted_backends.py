"""Backends with one planted fault each, for the honesty tests of the harness."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from conformance.torch_operator import torch_operator


def right(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(x, a), b)


def wrong_when_large(x: Tensor, *rest: object) -> Tensor:
    y = right(x, *rest)  # type: ignore[arg-type]
    return y * 1.0001 if x.shape[-2] >= 64 else y


def out_of_memory(x: Tensor, *rest: object) -> Tensor:
    torch.empty(2**60, dtype=torch.int8)
    return right(x, *rest)  # type: ignore[arg-type]


def killed(x: Tensor, *rest: object) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return right(x, *rest)  # type: ignore[arg-type]


def hanging(x: Tensor, *rest: object) -> Tensor:
    print(f"hanging in {os.getpid()}", flush=True)  # noqa: T201 - to the log
    time.sleep(600)
    return right(x, *rest)  # type: ignore[arg-type]


def exiting(x: Tensor, *rest: object) -> Tensor:
    os._exit(3)


def without_memory(x: Tensor, *rest: object) -> Tensor:
    raise MemoryError("no room for x")


def raising(x: Tensor, *rest: object) -> Tensor:
    raise ValueError("no such thing")


def copies_x(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return F.linear(x, w, bias) + scaling * F.linear(F.linear(x * torch.ones_like(x), a), b)  # a mask at p = 0


for _name in (
    *("right", "copies_x", "wrong_when_large", "out_of_memory", "killed", "hanging"),
    *("exiting", "without_memory", "raising"),
):
    globals()[f"{_name}_backend"] = torch_operator(globals()[_name], name=_name.replace("_", "-"))
