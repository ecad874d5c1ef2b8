"""h = s x Aᵀ: from the features to the few hidden columns.

The same kernel gives s dy B in a backward, where dy takes the place of x and Bᵀ that of A: strides say how either lies
in memory. s multiplies the float32 sum, which is then rounded once. Rows may be routed: each to its own adapter, with
its own rank and s (the names shrink and expand are from Chen et al., "Punica", 2023, arXiv:2310.18547).
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_ref.fused.kernels.blocks import add_product, routed_block
from lora_ref.fused.kernels.launch import Kernel, config


@triton.jit(do_not_specialize=["M", "rows_about"])
def shrink_kernel(
    x, a, h, order, starts, ranks, scalings,
    scaling, M, K, R, adapters, chunk, rows_about,
    x_row, x_col, a_adapter, a_row, a_col, h_part,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, blocks of ranks, parts); part p sums K from p * chunk on, into h + p * h_part."""
    if order is None:
        positions = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        ok = positions < M
        rows = positions.to(tl.int64)
        rank = R
    else:
        adapter, first, end = routed_block(starts, adapters, BLOCK_M)
        positions = first + tl.arange(0, BLOCK_M)
        ok = positions < end
        rows = tl.load(order + positions, mask=ok, other=0).to(tl.int64)
        rank = tl.minimum(tl.load(ranks + adapter, mask=adapter >= 0, other=0), R)
        scaling = tl.load(scalings + adapter, mask=adapter >= 0, other=0.0)
        a += adapter.to(tl.int64) * a_adapter
    part = tl.program_id(2)
    begin = part * chunk
    columns = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    length = tl.where(tl.program_id(1) * BLOCK_R < rank, tl.minimum(chunk, K - begin), 0)
    x += rows * x_row + begin.to(tl.int64) * x_col
    a += columns.to(tl.int64) * a_row + begin.to(tl.int64) * a_col
    acc = tl.full((BLOCK_M, BLOCK_R), 0.0, tl.float32)
    acc = add_product(acc, x, a, ok, columns < rank, length, x_col, a_col, BLOCK_K, WIDE)
    # h is contiguous; what lies beyond an adapter's rank is zero
    to = h + part.to(tl.int64) * h_part + (rows * R)[:, None] + columns[None, :]
    tl.store(to, (acc * scaling).to(h.dtype.element_ty), mask=ok[:, None] & (columns < R)[None, :])


SHRINK = Kernel(
    shrink_kernel,
    key=("rows_about", "K", "R", "a_row"),
    interpreted=config(BLOCK_M=64, BLOCK_K=64),
    half=(
        config(BLOCK_M=16, BLOCK_K=64, stages=4),
        config(BLOCK_M=64, BLOCK_K=64, stages=4),
        config(BLOCK_M=128, BLOCK_K=32, stages=4),
    ),
    mixed=(config(BLOCK_M=16, BLOCK_K=64, stages=3), config(BLOCK_M=64, BLOCK_K=32, stages=3)),
    single=(config(BLOCK_M=16, BLOCK_K=64, stages=3), config(BLOCK_M=64, BLOCK_K=32, stages=3)),
    unaligned=config(BLOCK_M=32, BLOCK_K=32, stages=2),
    lengths=("K", "x_row", "x_col", "a_row", "a_col", "a_adapter"),
    rank_blocks={"half": (16, 32), "mixed": (16, 32), "single": (16, 32)},
)
