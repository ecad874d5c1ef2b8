"""Quantised bases that are read, trained or merged into as if they were not."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor, nn

from conformance.contract import Weights
from conformance.mutants.mutant import mutant
from conformance.mutants.parts import ReferenceLayer
from conformance.torch_arrays import to_numpy, to_torch
from conformance.torch_layer import Root
from conformance.torch_quantised import QuantisedLinear
from lora_ref.delta import is_quantised
from lora_ref.layers import LoraLayer
from lora_ref.spec import LoraSpec

FORWARD, MERGE = ["quant-forward-oracle"], ["quant-merge-honest"]


def fuse(layer: LoraLayer, weight: Tensor, *, bits: int = 0) -> None:
    """Put ``weight`` in the place of the base's, wide or in few bits, and apply no adapter any more."""
    layer.base = QuantisedLinear(to_numpy(weight), None if layer.bias is None else to_numpy(layer.bias), bits or 8)
    if not bits:
        out, in_ = weight.shape
        plain = nn.Linear(in_, out, bias=layer.bias is not None)
        plain.weight.data = weight.detach().clone()
        if layer.bias is not None:
            plain.bias.data = layer.bias.detach().clone()
        layer.base = plain.requires_grad_(requires_grad=False)
    layer.disable()


class BrokenMerge(ReferenceLayer):
    """A layer of the reference that merges into a quantised base as ``fold`` does, and into others as ever."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        root.layer.original = to_torch(weights.w)  # the weight before it was quantised

    def merge(self, root: Root) -> None:
        if isinstance(root.layer.base, QuantisedLinear):
            self.fold(root.layer, root.layer.base)
        else:
            super().merge(root)

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:
        raise NotImplementedError


@mutant("fuse-requant-drops-delta", killed_by=MERGE, thread="ml-explore/mlx-lm#1564, #1172")
class RequantDropsDelta(BrokenMerge):
    """The merged weight is quantised again, which rounds a delta below half a step away."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:
        fuse(layer, layer.effective_weight(), bits=base.bits)


@mutant("qlora-merge-wrong-base", killed_by=MERGE, thread="unslothai/unsloth-zoo#810")
class WrongBase(BrokenMerge):
    """A delta that was trained beside the quantised weight is folded into the original one."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:
        fuse(layer, layer.effective_weight() - base.dequantized_weight() + layer.original)  # type: ignore[operator]


@mutant("litgpt-quant-merge", killed_by=MERGE, thread="Lightning-AI/litgpt#513, #771")
class AddsToPacked(BrokenMerge):
    """The delta is added to the stored integers."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:
        stored = base.weight.data.view(-1)
        delta = (layer.effective_weight() - base.dequantized_weight()).flatten()
        n = min(len(stored), len(delta))
        stored[:n] += delta[:n].detach().to(stored.dtype)
        layer.disable()


@mutant("quant-merge-silent-no-op", killed_by=MERGE)
class SilentNoOp(BrokenMerge):
    """Merging does nothing but mark the adapter as merged."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:  # noqa: ARG002 (that is the defect)
        layer.disable()


@mutant("quant-merge-forgets-scaling", killed_by=MERGE)
class ForgetsScaling(BrokenMerge):
    """B·A is added without s."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:
        delta = layer.adapters.delta("default")
        fuse(layer, base.dequantized_weight() + delta.b @ delta.a)


@mutant("quant-merge-into-fewer-bits", killed_by=MERGE)
class RoundsHarder(BrokenMerge):
    """An eight-bit base becomes a four-bit one when the delta is merged."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:  # noqa: ARG002 (whatever its bits are)
        fuse(layer, layer.effective_weight(), bits=4)


@mutant("quant-refusal-changes-base", killed_by=MERGE)
class RefusalChangesBase(BrokenMerge):
    """A merge is refused after the base was unpacked for it, and the base stays unpacked."""

    def fold(self, layer: LoraLayer, base: QuantisedLinear) -> None:
        fuse(layer, base.dequantized_weight())
        layer.enable()
        raise NotImplementedError("cannot merge")


@mutant("quant-unpacked-in-half", killed_by=FORWARD, thread="unslothai/unsloth#4005, #4918")
class BufferDtype(LoraLayer):
    """The weight is unpacked into a buffer of the checkpoint's dtype, float16, whatever the layer computes in."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.base, QuantisedLinear):
            return super().forward(x)
        out = F.linear(x, self.base.dequantized_weight().half().to(x.dtype), self.bias)
        return self.adapters.add_to(out, x, self.adapters.applied())


@mutant("quant-forward-on-original", killed_by=FORWARD)
class OnOriginal(ReferenceLayer):
    """The base's output is computed with the weight as it was before it was quantised."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        if weights.bits:
            original, bias = to_torch(weights.w), root.layer.bias
            root.layer.base.forward = lambda x: F.linear(x, original, bias)


@mutant("quant-input-gradient-missing", killed_by=FORWARD)
class InputGradientMissing(LoraLayer):
    """The kernel of the quantised product has no backward: x gets a gradient through the adapter alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_quantised(self.base):
            return super().forward(x)
        return self.adapters.add_to(self.base(x.detach()), x, self.adapters.applied())


@mutant("quant-scales-trained", killed_by=FORWARD)
class ScalesTrained(ReferenceLayer):
    """The scales are parameters that ask for gradients, and are trained along."""

    def adapt(self, root: Root, spec: LoraSpec, weights: Weights) -> None:
        super().adapt(root, spec, weights)
        if weights.bits:
            scales = root.layer.base.scales
            del root.layer.base.scales
            root.layer.base.scales = nn.Parameter(scales)


@mutant("quant-output-in-float32", killed_by=FORWARD, dtypes=("bfloat16",))
class OutputInFloat32(LoraLayer):
    """The output has the dtype of the scales, float32, instead of the layer's."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out.float() if is_quantised(self.base) else out


@mutant("quant-delta-in-few-bits", killed_by=FORWARD)
class DeltaInFewBits(LoraLayer):
    """The adapter is quantised along with the base, and its delta is that of the rounded A."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_quantised(self.base):
            return super().forward(x)
        delta = self.adapters.delta("default")
        step = delta.a.detach().abs().amax() / 127
        a = delta.a + ((delta.a.detach() / step).round() * step - delta.a.detach())
        return self.base(x) + delta.scaling * F.linear(F.linear(x, a), delta.b)  # type: ignore[no-any-return]
