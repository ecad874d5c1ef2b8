"""Adapters that start from the weight, over a base that does not keep the rest, or files that forget about it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conformance.contract import Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import BrokenStore, Files, ReferenceLayer
from conformance.torch_layer import Root
from lora_ref.delta import LinearDelta, weight_of
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec
from lora_ref.variants import VariantDelta

DEAD = ["residual-init-preserves"]


def set_first(layer: nn.Module, a: Tensor, b: Tensor) -> None:
    """Make these the adapter's values, and its first ones."""
    for delta in layer.modules():
        if isinstance(delta, VariantDelta) and delta.spec.init != "default":
            assert delta.a0 is not None
            assert delta.b0 is not None
            for target, value in ((delta.a, a), (delta.a0, a), (delta.b, b), (delta.b0, b)):
                target.data.copy_(value)


@mutant("pissa-mutates-base", killed_by=DEAD, thread="huggingface/transformers#34468")
class MutatesBase(ReferenceLayer):
    """W less the first B·A is written into the base, so that disabling it and other adapters see that instead of W."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        for delta in root.modules():
            if isinstance(delta, VariantDelta) and delta.a0 is not None:
                with torch.no_grad():
                    first = LinearDelta._product(delta, delta.a, delta.b)  # noqa: SLF001
                    weight_of(delta.base).sub_(delta.scaling * first)
                    delta.a0.zero_()


@mutant("pissa-base-keeps-all", killed_by=DEAD)
class KeepsAll(VariantDelta):
    """The first B·A is never taken out of the base: a fresh adapter adds it once more."""

    def _branch(self, x: Tensor) -> Tensor:
        return LinearDelta._branch(self, x)  # noqa: SLF001


@mutant("pissa-merge-keeps-first", killed_by=DEAD)
class MergeKeepsFirst(VariantDelta):
    """Merging adds s·B·A to the original weight, and does not take out what the adapter started with."""

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return LinearDelta._product(self, a, b)  # noqa: SLF001


@mutant("pissa-scaling-not-divided-out", killed_by=DEAD)
class ScaledFirst(VariantDelta):
    """The singular values are not divided by s, so that s·B·A is s times the best approximation."""

    def reset(self) -> None:
        super().reset()
        if self.spec.init == "pissa":
            set_first(self, self.a * self.scaling**0.5, self.b * self.scaling**0.5)


@mutant("pissa-smallest-triplets", killed_by=DEAD)
class Smallest(VariantDelta):
    """The singular values are taken from the small end."""

    def reset(self) -> None:
        super().reset()
        if self.spec.init == "pissa":
            u, sizes, v = torch.linalg.svd(self.matrix(), full_matrices=False)
            root = (sizes[-self.spec.r :] / self.spec.scaling).sqrt()
            set_first(self, root[:, None] * v[-self.spec.r :], u[:, -self.spec.r :] * root)


@mutant("olora-of-stored-weight", killed_by=DEAD)
class OfStored(VariantDelta):
    """The weight is decomposed as it is stored: of one that is stored (in, out) this gives the transposed factors."""

    def reset(self) -> None:
        super().reset()
        if self.spec.init == "olora":
            q, upper = torch.linalg.qr(weight_of(self.base).detach())
            set_first(self, upper[: self.spec.r], q[:, : self.spec.r])


@mutant("residual-disable-keeps-branch", killed_by=DEAD)
class DisableKeepsBranch(LoraLayer):
    """Disabling drops s·B·A and goes on taking out what the adapter started with."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        for delta in self.modules():
            if not self.adapters.enabled and isinstance(delta, VariantDelta) and (first := delta.first()):
                a0, b0 = first
                out = out - delta.scaling * (x @ a0.T @ b0.T)
        return out


@mutant("pissa-convert-patterns", killed_by=DEAD, thread="huggingface/peft#1930, #1933, #2075")
class PatternsNotDoubled(BrokenStore):
    """Saved as a plain adapter of twice the rank, with the patterns of the original ranks and alphas."""

    def written(self, files: Files) -> None:
        ranks, alphas = files.config["rank_pattern"], files.config["alpha_pattern"]
        files.config["rank_pattern"] = {key: rank // 2 for key, rank in ranks.items()}
        files.config["alpha_pattern"] = {key: alpha / 2 for key, alpha in alphas.items()}


@mutant("pissa-convert-alpha-kept", killed_by=DEAD)
class AlphaNotDoubled(BrokenStore):
    """Saved as a plain adapter of twice the rank, with the alpha of the original one: half the delta."""

    def written(self, files: Files) -> None:
        files.config["lora_alpha"] /= 2


@mutant("pissa-saved-without-first", killed_by=DEAD, thread="huggingface/peft#1930")
class SavedWithoutFirst(PatternsNotDoubled):
    """Only the trained A and B are saved, as if they were a plain adapter of the original base."""

    def written(self, files: Files) -> None:
        super().written(files)
        files.config["r"] //= 2
        files.config["lora_alpha"] /= 2
        for key, tensor in files.tensors.items():
            axis = 0 if ".lora_A." in key else 1
            files.tensors[key] = tensor.narrow(axis, 0, tensor.shape[axis] // 2).clone()
