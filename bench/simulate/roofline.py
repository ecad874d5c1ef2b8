"""The time below which the operations of a piece of work cannot end on a GPU.

Each operation takes the longer of its arithmetic at the peak rate and of its bytes at full bandwidth ("Roofline",
Williams, Waterman and Patterson, CACM 2009), one after the other. Left out: the launch of kernels, which rules small
shapes; caches, in which a tensor that was just written may still lie; fusion, so ``torch.compile`` can beat the sum for
elementwise operations; how far kernels fall short of the peaks; overlap of operations; and the optimiser's or the
network's transfers between devices.
"""

from __future__ import annotations

from bench.simulate.devices import Gpu
from bench.simulate.work import Piece, Work


def seconds(work: Work, gpu: Gpu) -> float:
    """Σ max(FLOPs / peak of the dtype, bytes / bandwidth) over the operations."""
    return sum(_piece(piece, gpu) * times for piece, times in work.pieces.items())


def bound(work: Work, gpu: Gpu) -> float:
    """The share of that time, 0 to 1, in which memory and not arithmetic is the limit."""
    slow = sum(
        _piece(piece, gpu) * times
        for piece, times in work.pieces.items()
        if piece.nbytes / gpu.bandwidth > piece.flops / gpu.flops(piece.dtype)
    )
    total = seconds(work, gpu)
    return slow / total if total else 0.0


def _piece(piece: Piece, gpu: Gpu) -> float:
    return max(piece.flops / gpu.flops(piece.dtype), piece.nbytes / gpu.bandwidth)
