"""y = x Wᵀ + bias + h Bᵀ: the base product and the expansion of the hidden columns in one accumulator, rounded once.

The same kernel gives dx = dy W + g A in a backward, with g = s dy B: strides say how W and A lie in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_ref.fused.kernels.blocks import add_product, grouped_block
from lora_ref.fused.kernels.launch import Kernel, config


@triton.jit(do_not_specialize=["M", "rows_about"])
def linear_kernel(
    x, w, bias, h, b, y,
    M, N, K, R, rows_about,
    x_row, x_col, w_row, w_col, bias_step, h_row, h_col, b_row, b_col,
    BASE_WIDE: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of rows times blocks of columns); x (M, K), w (N, K), h (M, R), b (N, R), y (M, N) contiguous."""
    i, j = grouped_block(M, N, BLOCK_M, BLOCK_N, 8)
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = rows < M
    col_ok = cols < N
    acc = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    acc = add_product(acc, x + rows * x_row, w + cols * w_row, row_ok, col_ok, K, x_col, w_col, BLOCK_K, BASE_WIDE)
    if bias is not None:
        acc += tl.load(bias + cols * bias_step, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    acc = add_product(acc, h + rows * h_row, b + cols * b_row, row_ok, col_ok, R, h_col, b_col, BLOCK_R, WIDE)
    to = y + (rows * N)[:, None] + cols[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


LINEAR = Kernel(
    linear_kernel,
    key=("rows_about", "N", "K", "R", "w_row"),
    interpreted=config(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64),
    half=(
        config(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, stages=4),
        config(BLOCK_M=32, BLOCK_N=128, BLOCK_K=64, stages=4),
        config(BLOCK_M=64, BLOCK_N=128, BLOCK_K=64, stages=4),
        config(BLOCK_M=128, BLOCK_N=128, BLOCK_K=32, warps=8, stages=4),
        config(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, warps=8, stages=3),
        config(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, warps=8, stages=3),
    ),
    mixed=(
        config(BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, stages=4),
        config(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, stages=4),
        config(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, warps=8, stages=3),
    ),
    single=(
        config(BLOCK_M=16, BLOCK_N=64, BLOCK_K=32, stages=3),
        config(BLOCK_M=32, BLOCK_N=64, BLOCK_K=32, stages=3),
        config(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, warps=8, stages=3),
        config(BLOCK_M=128, BLOCK_N=64, BLOCK_K=32, warps=8, stages=3),
    ),
    unaligned=config(BLOCK_M=32, BLOCK_N=64, BLOCK_K=32, stages=2),
    lengths=("N", "K", "x_row", "x_col", "w_row", "w_col", "b_row", "b_col"),
    rank_blocks={"half": (16,), "mixed": (16,), "single": (16,)},
)
