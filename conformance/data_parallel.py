"""Data-parallel training of a small adapted model: what each rank does, and what one process would have got.

Two blocks of two parallel linear layers, adapted and trained by SGD on sum(y * dy). All entries are small integers, the
scaling is even and the learning rate 1, so that every value is an integer, the average over two ranks too; the case
makes sure that none exceeds 2²⁴. So whatever the order of the sums, a right result has the closed form's bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import nn

from conformance.contract import Array, Model, ModelHandle
from conformance.torch_arrays import to_numpy, to_torch
from conformance.two_processes import RANKS
from lora_ref.spec import LoraSpec

Wrap = Literal["ddp", "fsdp2"]
WIDTH, ROWS, STEPS = 4, 2, 2
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
class Training:
    """A case: how the model is wrapped, which layers are adapted, and the seed of all arrays."""

    wrap: Wrap
    r: int = 2
    scaling: int = 2
    targets: tuple[str, ...] = NAMES
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

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """W, bias, A, B of each layer, x and dy of each step and rank: the densest that stay exact."""
        for density in np.linspace(0.9, 0.1, 33):
            rng = np.random.default_rng([self.seed, self.r, self.scaling])
            shapes = {"a": (self.r, WIDTH), "b": (WIDTH, self.r), "w": (WIDTH, WIDTH), "bias": (WIDTH,)}
            drawn = {f"{name}:{path}": shapes[name] for path in PATHS for name in shapes}
            drawn |= {f"{name}:{step}:{rank}": (ROWS, WIDTH)
                      for name in ("x", "dy") for step in range(STEPS) for rank in range(RANKS)}  # fmt: skip
            arrays = {}
            for key, shape in drawn.items():
                entries = rng.choice([-1, 1], shape) * (rng.random(shape) < density)
                arrays[key] = entries.astype(np.float32)
            sizes = single_process(self, {key: np.abs(array) for key, array in arrays.items()}, sizes=True)
            if max(float(value.max()) for value in sizes.values()) <= _LARGEST:
                return arrays
        raise AssertionError(f"no lattice keeps {self} exact")


def single_process(case: Training, arrays: Mapping[str, Array], *, sizes: bool = False) -> dict[str, Array]:
    """The closed form in float64, on the joint batch: "y", "da", "db" of each step, and A and B at the end.

    With ``sizes``, of absolute values, nothing is subtracted, so that all partial sums are bounded by what comes out.
    """
    at = {key: array.astype(np.float64) for key, array in arrays.items()}
    found: dict[str, Array] = {}
    for step in range(STEPS):
        x, dy = (np.concatenate([at[f"{name}:{step}:{rank}"] for rank in range(RANKS)]) for name in ("x", "dy"))
        inputs, weights = [], []
        for block in BLOCKS:
            paths = [f"blocks.{block}.{name}" for name in NAMES]
            inputs.append(x)
            weights.append(np.sum([_weight(case, at, path) for path in paths], axis=0))  # (out, in)
            x = x @ weights[-1].T + np.sum([at[f"bias:{path}"] for path in paths], axis=0)
            found[f"h:{step}:{block}"] = x
        found[f"y:{step}"] = x
        for block in reversed(BLOCKS):
            for path in (path for path in case.sites if path.startswith(f"blocks.{block}.")):
                a, b, seen = at[f"a:{path}"], at[f"b:{path}"], inputs[block]
                found[f"db:{step}:{path}"] = case.scaling * dy.T @ (seen @ a.T) / RANKS
                found[f"da:{step}:{path}"] = case.scaling * (dy @ b).T @ seen / RANKS
            dy = dy @ weights[block]
            found[f"dx:{step}:{block}"] = dy
        for path in case.sites:
            for name in "ab":
                change = found[f"d{name}:{step}:{path}"]
                at[f"{name}:{path}"] = at[f"{name}:{path}"] + (change if sizes else -change)
                found[f"{name}:{path}"] = at[f"{name}:{path}"]
    return found


def _weight(case: Training, at: Mapping[str, Array], path: str) -> Array:
    w = at[f"w:{path}"]
    return w + case.scaling * at[f"b:{path}"] @ at[f"a:{path}"] if path in case.sites else w


def train(rank: int, model: Model, cases: list[Training], merge: bool) -> list[dict[str, Array | None]]:  # noqa: FBT001 - sent to another process
    """What one rank sees in each case. A progress line per case goes to stdout, for a rank that hangs or dies."""
    results = []
    for case in cases:
        print(f"in {case}", flush=True)  # noqa: T201 - the launcher's log
        results.append(_train(rank, model, case, merge=merge))
    return results


def _train(rank: int, model: Model, case: Training, *, merge: bool) -> dict[str, Array | None]:
    torch.manual_seed(rank)  # ranks start from different random states, as they do where nobody thinks of it
    handle = model.attach(_base(case), case.spec)
    if rank == 0 or case.wrap != "ddp":  # DDP itself hands the values of rank 0 to the others
        _fill(case, handle)
    call = _wrapped(case.wrap, handle)
    seen = _factors(handle, "start a", "start b")
    live = [p for p in handle.module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(live, lr=1.0)
    for step in range(STEPS):
        optimiser.zero_grad()
        y = call(to_torch(case.arrays[f"x:{step}:{rank}"]))
        y.backward(to_torch(case.arrays[f"dy:{step}:{rank}"]))
        seen[f"y:{step}"] = _whole(y)
        for path in handle.sites():
            for name, factor in zip("ab", handle.factors(path), strict=True):
                seen[f"d{name}:{step}:{path}"] = _whole(factor.grad)
        if any(value is None for value in seen.values()):
            return seen  # DDP would refuse another step, with many words
        optimiser.step()
    seen |= _factors(handle, "a", "b")
    seen |= {f"base {name}": _whole(value) for name, value in handle.base_tensors().items()}
    if merge:
        seen |= _merged(handle)
    return seen


def _base(case: Training) -> Stack:
    stack = Stack()
    with torch.no_grad():
        for path in PATHS:
            layer = stack.get_submodule(path)
            for name, key in (("weight", "w"), ("bias", "bias")):
                getattr(layer, name).copy_(to_torch(case.arrays[f"{key}:{path}"]))
    return stack


def _fill(case: Training, handle: ModelHandle) -> None:
    with torch.no_grad():
        for path in handle.sites():
            for name, factor in zip("ab", handle.factors(path), strict=True):
                factor.copy_(to_torch(case.arrays[f"{name}:{path}"]))


def _wrapped(wrap: Wrap, handle: ModelHandle) -> Any:
    """What a user does after adapting: the whole model in DDP, or each block and then the model in FSDP2."""
    if wrap == "ddp":
        return nn.parallel.DistributedDataParallel(handle.module)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    for block in [module for module in handle.module.modules() if isinstance(module, Block)]:
        fully_shard(block, mesh=mesh)
    return fully_shard(handle.module, mesh=mesh)


def _factors(handle: ModelHandle, *names: str) -> dict[str, Array | None]:
    return {
        f"{name}:{path}": _whole(factor)
        for path in handle.sites()
        for name, factor in zip(names, handle.factors(path), strict=True)
    }


def _merged(handle: ModelHandle) -> dict[str, Array | None]:
    """The merged weights; nothing where the merge of sharded weights is refused, on every rank alike."""
    handle.module.eval()
    try:
        handle.merge()
    except Exception as error:  # noqa: BLE001 - any exception is a refusal
        print(f"merge refused: {error}", flush=True)  # noqa: T201 - the launcher's log
        return {}
    return {f"merged {path}": _whole(handle.weight(path)) for path in handle.sites()}


def _whole(tensor: Any) -> Array | None:
    """The values of a tensor, gathered from all ranks where it is sharded."""
    if tensor is None:
        return None
    return to_numpy(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor)
