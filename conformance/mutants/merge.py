"""A merge that adds something else, and an unmerge that does not take it away."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conformance.contract import Facet
from conformance.mutants.mutant import mutant
from lora_ref.delta import ConvDelta, Delta, EmbeddingDelta, LinearDelta, weight_of
from lora_ref.errors import LoraError
from lora_ref.layers import LoraLayer
from lora_ref.model import LoraModel

Plan = tuple[tuple[str, ...], Tensor | None]


@mutant("merge-delta-doubled", killed_by=["merge-delta-oracle", "merge-equivalence"])
class MergeDoubled(Delta):
    """A merge adds the delta twice; forward adds it once."""

    def weight(self) -> Tensor:
        return 2 * super().weight()


@mutant(
    "merge-twice-adds-twice", killed_by=["merge-idempotent"], thread="huggingface/peft#1355, Lightning-AI/litgpt#512"
)
class MergeTwiceAddsTwice(LoraLayer):
    """A second merge adds the delta again."""

    def merge(self, *names: str) -> None:
        before = self.merged_weight
        super().merge(*names)
        if before is not None:
            with torch.no_grad():
                change = self.effective_weight() - weight_of(self.base)
            self.merged_weight = before + change


@mutant("merge-not-transposed", killed_by=["merge-delta-oracle"], thread="microsoft/LoRA#103")
class MergeNotTransposed(LinearDelta):
    """Into a weight stored (in, out) the delta is merged as (out, in), which square layers accept."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return b @ a


@mutant("conv-merge-shape", killed_by=["merge-delta-oracle"], thread="huggingface/peft#637")
class ConvMergeShape(ConvDelta):
    """The kernel's axes come before the channels when the delta is reshaped, which no 1x1 kernel shows."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        out, width, *kernel = self.shape
        return super()._product(a, b).reshape(out, *kernel, width).movedim(-1, 1)


@mutant("conv-merge-pointwise-only", killed_by=["merge-delta-oracle"], thread="huggingface/peft#3768")
class ConvMergePointwise(ConvDelta):
    """A shortcut for kernels that begin with 1 takes the first of the taps behind it for all of them."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        if self.dims == 1 or self.shape[2] != 1:
            return super()._product(a, b)
        first = a.flatten(2)[:, :, 0].reshape(*a.shape[:2], *(1 for _ in range(self.dims)))
        return super()._product(first.expand(a.shape), b)


@mutant("grouped-conv-merge", killed_by=["merge-delta-oracle"], thread="KohakuBlueleaf/LyCORIS#285")
class GroupedConvMerge(ConvDelta):
    """Merging a grouped convolution scales the delta by the number of groups."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return self.groups * super()._product(a, b)


@mutant("embedding-merge-not-transposed", killed_by=["merge-delta-oracle"])
class EmbeddingMerge(EmbeddingDelta):
    """An embedding's delta is merged as (dim, num) instead of (num, dim)."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return b @ a


@mutant("merged-flag-ignored-in-forward", killed_by=["merge-equivalence"], thread="EricLBuehler/candle-lora#26")
class MergedFlagIgnored(LoraLayer):
    """An embedding's forward does not look whether the delta is merged, and adds it to a weight that has it."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        again = self.merged if isinstance(self.base, nn.Embedding) and self.adapters.enabled else ()
        return self.adapters.add_to(out, x, again)


@mutant("merged-forward-without-bias", killed_by=["merge-equivalence"])
class MergedWithoutBias(LoraLayer):
    """The merged layer multiplies with W' and forgets the bias."""

    def forward(self, x: Tensor) -> Tensor:
        bias = self.base.bias if self.merged and isinstance(self.base, nn.Linear) else None
        if bias is None:
            return super().forward(x)
        self.base.register_parameter("bias", None)
        try:
            return super().forward(x)
        finally:
            self.base.bias = bias


@mutant("merge-scales-bias", killed_by=["merge-delta-oracle"], thread="huggingface/peft#2489")
class MergeScalesBias(LoraLayer):
    """A merge multiplies the base's bias by s, and an unmerge puts it back."""

    kept: Tensor | None = None

    def commit(self, plan: Plan) -> None:
        super().commit(plan)
        if self.bias is not None and self.kept is None and self.merged:
            self.kept = self.bias.data.clone()
            self.bias.data.mul_(self.adapters.delta(self.merged[0]).scaling)

    def unmerge(self) -> None:
        if self.bias is not None and self.kept is not None:
            self.bias.data.copy_(self.kept)
        self.kept = None
        super().unmerge()


@mutant("merge-remembers-first-delta", killed_by=["unmerge-restores-base"])
class MergeRemembersFirst(LoraLayer):
    """The weight of the first merge is kept and used by every later one, whatever A and B are by then."""

    first: Tensor | None = None

    def _finite_weight(self, names: tuple[str, ...]) -> Tensor:
        weight = super()._finite_weight(names)
        self.first = weight if self.first is None else self.first
        return self.first


@mutant(
    "low-precision-merge-drift",
    killed_by=["unmerge-restores-base"],
    thread="huggingface/trl#6688",
    dtypes=("bfloat16", "float32"),
)
class MergeDrift(LoraLayer):
    """Unmerging subtracts what merging added, so that the base takes a random walk over many cycles."""

    added: Tensor | None = None

    def commit(self, plan: Plan) -> None:
        super().commit(plan)
        with torch.no_grad():
            self.added = sum((self.adapters.delta(name).weight() for name in self.merged), torch.zeros(()))

    def unmerge(self) -> None:
        if self.merged_weight is not None and self.added is not None:
            weight_of(self.base).data.copy_(self.merged_weight - self.added)
        super().unmerge()


@mutant("unmerge-from-rounded-copy", killed_by=["unmerge-restores-base"], thread="huggingface/peft#3650")
class UnmergeFromRoundedCopy(LoraLayer):
    """Unmerging restores a copy of the base that was kept in bfloat16."""

    def unmerge(self) -> None:
        weight = weight_of(self.base).data
        weight.copy_(weight.bfloat16() if self.merged else weight)
        super().unmerge()


@mutant("unmerge-adds-again", killed_by=["unmerge-restores-base"])
class UnmergeAdds(LoraLayer):
    """Unmerging adds the delta once more instead of taking it away."""

    def unmerge(self) -> None:
        if self.merged_weight is not None:
            weight = weight_of(self.base).data
            weight.copy_(2 * self.merged_weight - weight)
        super().unmerge()


@mutant("unmerge-leaves-inactive", killed_by=["unmerge-restores-base"])
class UnmergeLeavesInactive(LoraLayer):
    """Unmerging restores the weight, and leaves the adapter switched off."""

    def unmerge(self) -> None:
        if self.merged:
            self.adapters.active = ()
        super().unmerge()


@mutant("unmerge-doubles-later-delta", killed_by=["unmerge-restores-base"])
class UnmergeDoubles(LoraLayer):
    """After an unmerge the delta counts twice: once from its branch, once from a weight that was not reset."""

    unmerged = False

    def unmerge(self) -> None:
        self.unmerged = self.unmerged or bool(self.merged)
        super().unmerge()

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters.add_to(super().forward(x), x, self.adapters.applied() if self.unmerged else ())


@mutant("safe-merge-not-atomic", killed_by=["merge-atomic"], thread="huggingface/peft#3689, #3705")
class MergeNotAtomic(LoraLayer):
    """The weight is written before the check that refuses it."""

    def _finite_weight(self, names: tuple[str, ...]) -> Tensor:
        try:
            return super()._finite_weight(names)
        except LoraError:
            weight_of(self.base).data.copy_(self.effective_weight(*names).detach())
            raise


@mutant("nan-merge-not-reversible", killed_by=["merge-atomic"], thread="huggingface/diffusers#5313")
class NanMergeNotReversible(LoraLayer):
    """A delta that is not finite is merged, and subtracting it leaves NaN behind."""

    def _finite_weight(self, names: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            return self.effective_weight(*names)

    def unmerge(self) -> None:
        if self.merged_weight is not None:
            weight_of(self.base).data.add_(self.merged_weight - self.merged_weight)
        super().unmerge()


@mutant("refused-merge-counts-as-merged", killed_by=["merge-atomic"], thread="huggingface/peft#3706")
class RefusedCountsAsMerged(LoraLayer):
    """A merge that is refused leaves the layer saying that it is merged, with the base's weight."""

    def merge(self, *names: str) -> None:
        try:
            super().merge(*names)
        except LoraError:
            self.merged, self.merged_weight = self.adapters.active, weight_of(self.base).detach().clone()
            self._stamp = self._fingerprint()
            raise


@mutant("tied-head-merge", killed_by=["merge-no-alias"], thread="huggingface/peft#2018", on=Facet.MODEL)
class TiedHeadMerge(LoraLayer):
    """A merge writes into the base's storage, which a tied embedding shares."""

    kept: Tensor | None = None

    def commit(self, plan: Plan) -> None:
        super().commit(plan)
        if self.merged_weight is not None and self.kept is None:
            self.kept = weight_of(self.base).data.clone()
            weight_of(self.base).data.copy_(self.merged_weight)

    def unmerge(self) -> None:
        if self.kept is not None:
            weight_of(self.base).data.copy_(self.kept)
        self.kept = None
        super().unmerge()


@mutant("model-merges-first-layer-only", killed_by=["merge-delta-oracle"])
class MergesFirstLayerOnly(LoraModel):
    """Merging a model stops after its first adapted layer; outputs stay right."""

    def merge(self, *names: str) -> None:
        next(iter(self.layers().values())).merge(*names)


@mutant("model-merged-adds-again", killed_by=["merge-equivalence"], on=Facet.MODEL)
class MergedModelAddsAgain(LoraLayer):
    """In a merged model every branch is still added to the output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.adapters.add_to(super().forward(x), x, self.merged)


@mutant("unfuse-bookkeeping-desync", killed_by=["unmerge-restores-base"], thread="huggingface/diffusers#14214")
class UnmergesFirstLayerOnly(LoraModel):
    """One set remembers what is merged for all layers: unmerging the first clears it, and the others stay merged."""

    def unmerge(self) -> None:
        next(iter(self.layers().values())).unmerge()
