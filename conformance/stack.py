"""A small adapted model that is trained in whole numbers, so that a right result has one value, bit for bit.

Two blocks of two parallel linear layers, trained by SGD on sum(y * dy), with the mean of the gradients of two parts of
the batch. All entries are small integers, the scaling is even, the learning rate 1 and the momentum whole, so that
every value is an integer, that mean too; the case makes sure that none exceeds 2²⁴. So whatever the order of the sums,
a right result has the closed form's bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from conformance.cases import InexactCaseError
from conformance.contract import Array, ModelHandle
from conformance.torch_arrays import to_torch
from lora_ref.spec import LoraSpec

WIDTH, ROWS, PARTS, STEPS = 4, 2, 2, 2
BLOCKS, NAMES = (0, 1), ("q", "v")
PATHS = tuple(f"blocks.{block}.{name}" for block in BLOCKS for name in NAMES)
_LARGEST = 2.0**24  # integers up to here are exact in float32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.q(x) + self.v(x)
        return y


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in BLOCKS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@dataclass(frozen=True)
class StackCase:
    """Which layers are adapted and how, what the optimiser does, and the seed of all arrays."""

    r: int = 2
    scaling: int = 2
    targets: tuple[str, ...] = NAMES
    momentum: int = 0
    dtype: str = "float32"
    seed: int = 0

    @classmethod
    def from_fields(cls, given: Mapping[str, Any]) -> Self:
        unknown = set(given) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a case has no field {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**values)

    def described(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.described(), separators=(",", ":"))

    @property
    def spec(self) -> LoraSpec:
        return LoraSpec(r=self.r, alpha=float(self.scaling * self.r), targets=self.targets)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(path for path in PATHS if path.rsplit(".", 1)[-1] in self.targets)

    @property
    def arrays(self) -> dict[str, Array]:
        """W, bias, A, B of each layer, x and dy of each step and part of the batch.

        Raises:
            InexactCaseError: no lattice is sparse enough; a strategy must not draw this case.
        """
        return self._training[0]

    @property
    def expected(self) -> dict[str, Array]:
        """The closed form, see ``closed_form``."""
        return self._training[1]

    @cached_property
    def _training(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The densest entries that stay exact, and what comes of them."""
        shapes = {"a": (self.r, WIDTH), "b": (WIDTH, self.r), "w": (WIDTH, WIDTH), "bias": (WIDTH,)}
        drawn = {f"{name}:{path}": shapes[name] for path in PATHS for name in shapes}
        drawn |= {f"{name}:{step}:{part}": (ROWS, WIDTH)
                  for name in ("x", "dy") for step in range(STEPS) for part in range(PARTS)}  # fmt: skip
        for nth, density in enumerate(np.linspace(0.9, 0.1, 33)):
            rng = np.random.default_rng([self.seed, nth])
            arrays = {
                key: (rng.choice([-1, 1], shape) * (rng.random(shape) < density)).astype(np.float32)
                for key, shape in drawn.items()
            }
            found, largest = closed_form(self, arrays)
            if largest <= _LARGEST:
                return arrays, found
        raise InexactCaseError(self.to_json())

    def base(self) -> Stack:
        stack = Stack()
        with torch.no_grad():
            for path in PATHS:
                layer = stack.get_submodule(path)
                for name, key in (("weight", "w"), ("bias", "bias")):
                    getattr(layer, name).copy_(to_torch(self.arrays[f"{key}:{path}"]))
        return stack

    def fill(self, handle: ModelHandle) -> None:
        with torch.no_grad():
            for path in handle.sites():
                for name, factor in zip("ab", handle.factors(path), strict=True):
                    factor.copy_(to_torch(self.arrays[f"{name}:{path}"]))


def closed_form(case: StackCase, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    """In float64, on the whole batch: "y", "da", "db" of each step, A and B after it; then W', and y in the end.

    Also the largest absolute partial sum that any order of the sums can meet: products and sums of absolute values of
    what goes into each of them.
    """
    at = {key: array.astype(np.float64) for key, array in arrays.items()}
    found: dict[str, Array] = {}
    sums: list[Array] = []
    for step in range(STEPS):
        dy = _batch(at, "dy", step)
        xs = _forward(case, at, step, sums)
        found[f"y:{step}"] = xs[-1]
        for block in reversed(BLOCKS):
            for path in (path for path in case.sites if path.startswith(f"blocks.{block}.")):
                for name, gradient in _gradients(case, at, path, xs[block], dy, sums).items():
                    found[f"d{name}:{step}:{path}"] = gradient
            sums.append(np.abs(dy) @ _joint(case, _sizes(at), block))
            dy = dy @ _joint(case, at, block)
        for path, name in product(case.sites, "ab"):
            key = f"{name}:{path}"
            moved = case.momentum * found.get(f"v{key}", 0.0) + found[f"d{name}:{step}:{path}"]
            sums.append(np.abs(at[key]) + np.abs(moved))
            at[key] = at[key] - moved
            found[f"v{key}"], found[f"{name}:{step}:{path}"], found[key] = moved, at[key], at[key]
    found["trained y"] = _forward(case, at, 0, sums)[-1]
    found |= {f"merged:{path}": _weight(case, at, path) for path in case.sites}
    sums += [_weight(case, _sizes(at), path) for path in case.sites]
    return found, max(float(size.max()) for size in sums)


def _forward(case: StackCase, at: Mapping[str, Array], step: int, sums: list[Array]) -> list[Array]:
    """The input of each block, and the output of the last: (rows, WIDTH) each."""
    xs, sizes = [_batch(at, "x", step)], _sizes(at)
    for block in BLOCKS:
        bias = np.sum([at[f"bias:blocks.{block}.{name}"] for name in NAMES], axis=0)
        sums.append(np.abs(xs[-1]) @ _joint(case, sizes, block).T + len(NAMES))
        xs.append(xs[-1] @ _joint(case, at, block).T + bias)
    return xs


def _gradients(
    case: StackCase, at: Mapping[str, Array], path: str, x: Array, dy: Array, sums: list[Array]
) -> dict[str, Array]:
    """dA and dB of the mean over the parts."""
    a, b = at[f"a:{path}"], at[f"b:{path}"]
    sums.append(case.scaling * np.abs(dy).T @ (np.abs(x) @ np.abs(a).T))
    sums.append(case.scaling * (np.abs(dy) @ np.abs(b)).T @ np.abs(x))
    return {"a": case.scaling * (dy @ b).T @ x / PARTS, "b": case.scaling * dy.T @ (x @ a.T) / PARTS}


def _joint(case: StackCase, at: Mapping[str, Array], block: int) -> Array:
    """The W' of a block's layers, which add up: (out, in)."""
    total: Array = np.sum([_weight(case, at, f"blocks.{block}.{name}") for name in NAMES], axis=0)
    return total


def _weight(case: StackCase, at: Mapping[str, Array], path: str) -> Array:
    w = at[f"w:{path}"]
    return w + case.scaling * at[f"b:{path}"] @ at[f"a:{path}"] if path in case.sites else w


def _batch(at: Mapping[str, Array], name: str, step: int) -> Array:
    return np.concatenate([at[f"{name}:{step}:{part}"] for part in range(PARTS)])


def _sizes(at: Mapping[str, Array]) -> dict[str, Array]:
    return {key: np.abs(value) for key, value in at.items()}
