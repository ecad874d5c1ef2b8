"""Right for the shapes and strides that everybody tries."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from torch import Tensor

from conformance.mutants.mutant import mutant
from conformance.mutants.parts import on_gradient
from lora_ref.delta import Delta, LinearDelta

SHAPES = ["shape-general"]


def as_if_contiguous(x: Tensor) -> Tensor:
    """What a kernel sees that is handed the address and the shape, and not the strides."""
    strides = torch.empty(x.shape, device="meta").stride()
    return torch.as_strided(x, x.shape, strides)


@mutant("x-assumed-contiguous", killed_by=["layout-agnostic"])
class XAssumedContiguous(LinearDelta):
    """The branch reads x as if its rows lay one behind the other."""

    def _branch(self, x: Tensor) -> Tensor:
        return super()._branch(as_if_contiguous(x))


@mutant("dy-assumed-contiguous", killed_by=["layout-agnostic"])
class DyAssumedContiguous(Delta):
    """Backward reads dy as if its rows lay one behind the other; outputs are right."""

    def forward(self, x: Tensor) -> Tensor:
        return on_gradient(super().forward(x), as_if_contiguous)


@mutant("broadcast-dy-read-once", killed_by=["layout-agnostic"])
class BroadcastDyOnce(Delta):
    """A gradient that is broadcast over rows, as that of a sum is, counts for the first of them only."""

    @staticmethod
    def _first(gradient: Tensor) -> Tensor:
        if gradient.dim() < 2 or gradient.stride(0) or not gradient.shape[0]:
            return gradient
        return torch.cat([gradient[:1], torch.zeros_like(gradient[1:])])

    def forward(self, x: Tensor) -> Tensor:
        return on_gradient(super().forward(x), self._first)


@mutant("strided-x-refused", killed_by=["layout-agnostic"])
class StridedRefused(LinearDelta):
    """The input is viewed as a matrix, which fails where its axes cannot be joined without a copy."""

    def _branch(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        return super()._branch(rows).reshape(*x.shape[:-1], self.b.shape[0])


@mutant("zero-rows-divide", killed_by=SHAPES, thread="sgl-project/sglang#7785")
class ZeroRows(LinearDelta):
    """The size of a grid is computed by dividing by the number of rows."""

    def _branch(self, x: Tensor) -> Tensor:
        rows = x[..., 0].numel()
        return super()._branch(x) * (rows // rows)


@mutant("zero-rows-as-one", killed_by=SHAPES)
class ZeroRowsAsOne(Delta):
    """An empty batch is answered with one row of zeros."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return delta if delta.numel() else delta.new_zeros(1, delta.shape[-1])


@mutant("single-vector-without-delta", killed_by=SHAPES)
class VectorWithoutDelta(LinearDelta):
    """An input without leading dimensions passes the branch by."""

    def _branch(self, x: Tensor) -> Tensor:
        return super()._branch(x) * (x.dim() > 1)


@mutant("only-matrices-and-batches", killed_by=SHAPES)
class NoFourthAxis(LinearDelta):
    """An input with three leading dimensions is refused."""

    def _branch(self, x: Tensor) -> Tensor:
        if x.dim() > 3:
            raise ValueError("expected two or three dimensions")
        return super()._branch(x)


@mutant("leading-axes-swapped", killed_by=SHAPES)
class LeadingAxesSwapped(LinearDelta):
    """Batch and sequence are swapped when the rows are put back."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        return out if x.dim() < 3 else out.transpose(0, 1).reshape(out.shape)


@mutant("one-output-squeezed", killed_by=SHAPES)
class OneOutputSqueezed(LinearDelta):
    """A delta with one output loses that axis, and broadcasts over the batch."""

    def _branch(self, x: Tensor) -> Tensor:
        return super()._branch(x).squeeze(-1)


@mutant("rank-cut-to-features", killed_by=SHAPES)
class RankCut(LinearDelta):
    """A rank above both features is cut to the smaller of them."""

    def _branch(self, x: Tensor) -> Tensor:
        r = min(self.a.shape[1], self.b.shape[0])
        return F.linear(F.linear(x, self.a[:r]), self.b[:, :r])


@mutant("rank-one-without-b", killed_by=SHAPES)
class RankOne(LinearDelta):
    """For rank 1 the product is written as one with the first row of B, for all outputs."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        return out if self.a.shape[0] > 1 else out[..., :1].expand(out.shape)


@mutant("npu-unaligned-rank", killed_by=SHAPES, thread="sgl-project/sgl-kernel-npu#805")
class UnalignedRank(LinearDelta):
    """Ranks above 8 are copied in blocks of 8, and what is left over is not."""

    def _branch(self, x: Tensor) -> Tensor:
        r = self.a.shape[0]
        whole = r - r % 8 if r > 8 else r
        return F.linear(F.linear(x, self.a[:whole]), self.b[:, :whole])


@mutant("rank-padding-tail", killed_by=SHAPES, thread="sgl-project/sglang#27087")
class RankPaddingTail(LinearDelta):
    """Adapters share a slot of the largest rank, and one of a small rank reads what the last one left in its tail."""

    slots: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # noqa: RUF012 - one for all is the defect

    def _branch(self, x: Tensor) -> Tensor:
        (r, width), out = self.a.shape, self.b.shape[0]
        a, b = self.slots.setdefault((width, out), (torch.zeros(64, width), torch.zeros(out, 64)))
        a[:r], b[:, :r] = self.a.detach(), self.b.detach()
        tail = F.linear(F.linear(x, a[r:]), b[:, r:])
        return super()._branch(x) + tail


@mutant("input-tail-lost", killed_by=SHAPES)
class InputTailLost(LinearDelta):
    """Inputs beyond the last whole tile of 16 are not read, in layers of more than one tile."""

    def _branch(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        whole = n - n % 16 if n > 16 else n
        return F.linear(F.linear(x[..., :whole], self.a[:, :whole]), self.b)


@mutant("output-tail-lost", killed_by=SHAPES)
class OutputTailLost(LinearDelta):
    """Outputs beyond the last whole tile of 64 are not written, in layers of more than one tile."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        n = out.shape[-1]
        return out if n < 64 else F.pad(out[..., : n - n % 64], (0, n % 64))


@mutant("row-tail-lost", killed_by=SHAPES)
class RowTailLost(LinearDelta):
    """Rows beyond the last whole tile of 128 get no delta, in batches of more than one tile."""

    def _branch(self, x: Tensor) -> Tensor:
        out = super()._branch(x)
        rows = out.reshape(-1, out.shape[-1])
        n = len(rows)
        return out if n < 128 else F.pad(rows[: n - n % 128], (0, 0, 0, n % 128)).reshape(out.shape)


@mutant("fast-path-of-large-batches", killed_by=SHAPES, thread="sgl-project/sglang#28091")
class FastPathWithoutScaling(LinearDelta):
    """Batches of more than 32 rows take a fast path whose scaling is another adapter's."""

    def forward(self, x: Tensor) -> Tensor:
        delta = super().forward(x)
        return delta if x[..., 0].numel() <= 32 else 0.5 * delta


@mutant("rank-cut-at-64", killed_by=SHAPES)
class RankCutAt64(LinearDelta):
    """A buffer is made for ranks up to 64; what is above them takes no part."""

    def _branch(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.a[:64])  # (..., in) -> (..., min(r, 64))
        return F.linear(h, self.b[:, :64])  # (..., out)


@mutant("second-block-of-inputs-lost", killed_by=SHAPES)
class SecondBlockLost(LinearDelta):
    """The sum over inputs ends after its first block of 256."""

    def _branch(self, x: Tensor) -> Tensor:
        h = F.linear(x[..., :256], self.a[:, :256])  # (..., 256) -> (..., r)
        return F.linear(h, self.b)  # (..., out)


@mutant("second-block-of-rows-lost", killed_by=SHAPES)
class SecondBlockOfRowsLost(LinearDelta):
    """Rows after the first block of 256 get no delta."""

    def _branch(self, x: Tensor) -> Tensor:
        y = super()._branch(x)  # (..., out)
        rows = torch.arange(x[..., 0].numel()).view(*x.shape[:-1], 1)
        return torch.where(rows < 256, y, 0)
