"""y = base + h Bᵀ for routed rows: each with the B of its own adapter; rows without one keep their base.

The same kernel gives what the adapters add to dx in a backward, g A, where Aᵀ takes the place of B and base is zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_ref.fused.kernels.blocks import add_product, routed_block
from lora_ref.fused.kernels.launch import Kernel, config


@triton.jit(do_not_specialize=["rows_about"])
def expand_kernel(
    base, h, b, y, order, starts, ranks,
    N, R, adapters, rows_about,
    base_row, base_col, h_row, h_col, b_adapter, b_row, b_col,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows, blocks of columns); base (M, N) or None, h (M, R), b (adapters, N, R), y contiguous."""
    adapter, first, end = routed_block(starts, adapters, BLOCK_M)
    positions = first + tl.arange(0, BLOCK_M)
    ok = positions < end
    rows = tl.load(order + positions, mask=ok, other=0).to(tl.int64)
    rank = tl.minimum(tl.load(ranks + adapter, mask=adapter >= 0, other=0), R)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    col_ok = cols < N
    mask = ok[:, None] & col_ok[None, :]
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    b += adapter.to(tl.int64) * b_adapter
    acc = add_product(acc, h + rows * h_row, b + cols * b_row, ok, col_ok, rank, h_col, b_col, BLOCK_R, WIDE)
    if base is not None:
        at = base + (rows * base_row)[:, None] + (cols * base_col)[None, :]
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + (rows * N)[:, None] + cols[None, :], acc.to(y.dtype.element_ty), mask=mask)


EXPAND = Kernel(
    expand_kernel,
    key=("rows_about", "N", "R", "b_row"),
    interpreted=config(BLOCK_M=64, BLOCK_N=64),
    half=(
        config(BLOCK_M=16, BLOCK_N=128, stages=2),
        config(BLOCK_M=64, BLOCK_N=128, stages=2),
        config(BLOCK_M=16, BLOCK_N=256, stages=2),
    ),
    mixed=(config(BLOCK_M=16, BLOCK_N=128), config(BLOCK_M=32, BLOCK_N=64)),
    single=(config(BLOCK_M=16, BLOCK_N=128), config(BLOCK_M=32, BLOCK_N=64)),
    unaligned=config(BLOCK_M=32, BLOCK_N=64),
    lengths=("N", "base_row", "base_col", "b_row", "b_col", "b_adapter"),
    rank_blocks={"half": (16,), "mixed": (16,), "single": (16,)},
)
