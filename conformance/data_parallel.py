"""Data-parallel training of a small adapted model: what each of two ranks does with its part of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from conformance.contract import Array, Model, ModelHandle
from conformance.stack import STEPS, Block, StackCase
from conformance.torch_arrays import to_numpy, to_torch
from conformance.two_processes import RANKS

Wrap = Literal["ddp", "fsdp2"]


@dataclass(frozen=True)
class Training(StackCase):
    """A case, and how the model is wrapped."""

    wrap: Wrap = "ddp"


def train(rank: int, model: Model, cases: list[Training], merge: bool) -> list[dict[str, Array | None]]:  # noqa: FBT001 - sent to another process
    """What one rank sees in each case. A progress line per case goes to stdout, for a rank that hangs or dies."""
    results = []
    for case in cases:
        print(f"in {case}", flush=True)  # noqa: T201 - the launcher's log
        results.append(_train(rank, model, case, merge=merge))
    return results


def _train(rank: int, model: Model, case: Training, *, merge: bool) -> dict[str, Array | None]:
    torch.manual_seed(rank)  # ranks start from different random states, as they do where nobody thinks of it
    handle = model.attach(case.base(), case.spec)
    if rank == 0 or case.wrap != "ddp":  # DDP itself hands the values of rank 0 to the others
        case.fill(handle)
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
