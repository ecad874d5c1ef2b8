"""Models that are right in one process, and wrong in two."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from lora_ref.delta import Delta, LinearDelta
from lora_ref.layers import LoraLayer
from lora_ref.model import LoraModel
from lora_ref.spec import LoraSpec

_KILLED_BY = ["world-size-parity"]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Unsynchronised(LoraModel):
    """DDP is told to leave these parameters alone."""

    factors: tuple[str, ...]

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        left_alone = [path for path, _ in self.module.named_parameters() if path.endswith(self.factors)]
        self.module._ddp_params_and_buffers_to_ignore = left_alone  # type: ignore[assignment]  # noqa: SLF001


@mutant(
    "replicated-factor-not-reduced",
    killed_by=_KILLED_BY,
    thread="modelscope/mcore-bridge#173, hao-ai-lab/FastVideo#1666, radixark/miles#2723",
)
class FactorNotReduced(_Unsynchronised):
    """The replicated factor A gets the gradient of its own rank only, so that the replicas drift apart."""

    factors = (".a",)


@mutant("adapter-made-after-wrapping", killed_by=_KILLED_BY)
class OneAdapterLeftOut(_Unsynchronised):
    """The adapters of one projection are made after the model was wrapped: neither values nor gradients are shared."""

    factors = (".v.adapters.default.a", ".v.adapters.default.b")


@mutant("initial-values-of-each-rank", killed_by=_KILLED_BY)
class OwnInitialValues(_Unsynchronised):
    """Gradients are averaged by a hook of the adapter's own, but each rank keeps the A that it drew."""

    factors = (".a",)

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for delta in deltas.values():
            delta.a.register_hook(_averaged)  # type: ignore[no-untyped-call]


def _averaged(gradient: Tensor) -> Tensor:
    total = gradient.clone()
    if _together():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def _added_up(gradient: Tensor) -> Tensor:
    return _averaged(gradient) * (dist.get_world_size() if _together() else 1)


@mutant("gradients-reduced-twice", killed_by=_KILLED_BY)
class ReducedTwice(LoraModel):
    """The adapter adds up the gradients of all ranks itself, and the wrapper averages sums."""

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for delta in deltas.values():
            delta.b.register_hook(_added_up)  # type: ignore[no-untyped-call]


@mutant("params-replaced-after-wrapping", killed_by=_KILLED_BY, thread="huggingface/peft#3409", on=Facet.MODEL)
class ReplacedLate(LinearDelta):
    """The first forward replaces A and B by new parameters: wrapper and optimiser hold those from before."""

    replaced = False

    def forward(self, x: Tensor) -> Tensor:
        if _together() and not self.replaced:
            self.a, self.b = nn.Parameter(self.a.detach().clone()), nn.Parameter(self.b.detach().clone())
            self.replaced = True
        return super().forward(x)


class _Held(LinearDelta):
    held: tuple[nn.Parameter, nn.Parameter]

    def _branch(self, x: Tensor) -> Tensor:
        a, b = self.held
        return F.linear(F.linear(x, a), b)


@mutant("fsdp-keeps-old-parameters", killed_by=_KILLED_BY)
class KeepsOldParameters(LoraModel):
    """Forward uses A and B as they were when the adapter was made: sharding replaces them, and these never train."""

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for delta in deltas.values():
            delta.__class__ = _Held
            delta.held = delta.a, delta.b  # type: ignore[assignment]


@mutant(
    "fsdp-blocks-detached",
    killed_by=_KILLED_BY,
    thread="meta-pytorch/torchforge#592, pytorch/torchtitan#421",
    on=Facet.MODEL,
)
class DetachedBetweenBlocks(LoraLayer):
    """Between blocks the activations are detached when there are several ranks: only the last block trains."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() if _together() else x)


@mutant("duplicated-linear-sharded", killed_by=_KILLED_BY, thread="NVIDIA-NeMo/Megatron-Bridge#5900", on=Facet.MODEL)
class ShardedOnDuplicated(LinearDelta):
    """A is sharded over ranks that see different rows: the gathered hidden state joins one's with another's."""

    def _branch(self, x: Tensor) -> Tensor:
        r = self.a.shape[0]
        if not _together() or r % dist.get_world_size():
            return super()._branch(x)
        from torch.distributed.nn.functional import all_gather

        rank, each = dist.get_rank(), r // dist.get_world_size()
        parts = all_gather(F.linear(x, self.a[rank * each : (rank + 1) * each]).contiguous())  # type: ignore[no-untyped-call]
        return F.linear(torch.cat(parts, -1), self.b)


@mutant(
    "tp-merge-partial",
    killed_by=_KILLED_BY,
    thread="NVIDIA-NeMo/Megatron-Bridge#2193, NVIDIA-NeMo/Megatron-Bridge#2194",
    on=Facet.MODEL,
)
class MergesLocalSlice(Delta):
    """A merge adds the rows of the delta that belong to the own rank, and no others."""

    def weight(self) -> Tensor:
        whole = super().weight()
        if not _together():
            return whole
        rows = torch.arange(whole.shape[0]) * dist.get_world_size() // whole.shape[0]
        return whole * (rows == dist.get_rank()).unsqueeze(-1).to(whole.dtype)


@mutant("fsdp-merge-of-local-shards", killed_by=_KILLED_BY, on=Facet.MODEL)
class MergesLocalShards(LinearDelta):
    """A merge of sharded weights multiplies the shards of B and A that lie on the own rank, as far as shapes allow."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Replicate

        if not isinstance(a, DTensor):
            return super()._product(a, b)
        seen = a.full_tensor().clone()
        seen[a.to_local().shape[0] :] = 0  # as many rows as this rank holds, and no others
        held = DTensor.from_local(seen, a.device_mesh, [Replicate()])
        return b @ held


@mutant("adapter-on-first-rank-only", killed_by=_KILLED_BY, on=Facet.MODEL)
class OnFirstRankOnly(LinearDelta):
    """Only rank 0 adds the delta, as only rank 0 is meant to save it."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return 0 * delta if _together() and dist.get_rank() else delta


@mutant("scale-of-world-size", killed_by=_KILLED_BY, on=Facet.MODEL)
class ScaledByWorldSize(LinearDelta):
    """The delta is divided by the number of ranks, as if they added theirs up."""

    @property
    def scaling(self) -> float:
        return super().scaling / (dist.get_world_size() if _together() else 1)


@mutant("base-thawed-for-sharding", killed_by=_KILLED_BY)
class ThawsBase(LoraModel):
    """As if all parameters of a shard had to ask for gradients alike, the base is made to, and trains along."""

    def add(self, name: str, spec: LoraSpec, deltas: Mapping[str, Delta], *, trainable: bool) -> None:
        super().add(name, spec, deltas, trainable=trainable)
        for layer in self.layers().values() if _together() else ():
            layer.base.requires_grad_(requires_grad=True)


@mutant("second-step-detached", killed_by=_KILLED_BY, on=Facet.MODEL)
class SecondStepDetached(LoraLayer):
    """From the second step on the gradient ends at each layer, on all ranks but the first; one step looks healthy."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x.detach() + 0 * x if self.calls > 1 and _together() and dist.get_rank() else x)
