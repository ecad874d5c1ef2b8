"""The gradient of a factor: a sum over rows of products of a few columns with many, Tᵀ V.

dA = gᵀ x with T = g = s dy B, and dB = dyᵀ h = (hᵀ dy)ᵀ with T = h, stored the other way round. No atomic additions:
the rows are summed in ascending order, in parts where there are many, and the parts are summed in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lora_ref.fused.kernels.blocks import dot
from lora_ref.fused.kernels.launch import Kernel, config


@triton.jit(do_not_specialize=["M", "rows_about"])
def gradient_kernel(
    t, v, d, order, starts,
    M, C, R, parts, rows_about,
    t_row, t_col, v_row, v_col, d_part, d_adapter, d_t, d_v,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of V's columns, adapters times parts, blocks of T's columns); t (M, R), v (M, C), d (..., R, C)."""
    adapter = tl.program_id(1) // parts
    part = tl.program_id(1) % parts
    if order is None:
        begin = 0
        end = M
    else:
        begin = tl.load(starts + adapter + 1)
        end = tl.load(starts + adapter + 2)
    chunk = ((end - begin + parts - 1) // parts + 63) // 64 * 64  # whatever the blocks are: parts keep their bits
    first = begin + part * chunk
    last = tl.minimum(first + chunk, end)
    left_cols = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    cols = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    left_ok = left_cols < R
    col_ok = cols < C
    acc = tl.full((BLOCK_R, BLOCK_C), 0.0, tl.float32)
    for start in range(first, last, BLOCK_M):
        positions = start + tl.arange(0, BLOCK_M)
        ok = positions < last
        rows = positions.to(tl.int64) if order is None else tl.load(order + positions, mask=ok, other=0).to(tl.int64)
        left = tl.load(
            t + (rows * t_row)[None, :] + (left_cols * t_col)[:, None], mask=left_ok[:, None] & ok[None, :], other=0.0
        )  # (BLOCK_R, BLOCK_M)
        right = tl.load(
            v + (rows * v_row)[:, None] + (cols * v_col)[None, :], mask=ok[:, None] & col_ok[None, :], other=0.0
        )  # (BLOCK_M, BLOCK_C)
        acc = dot(left, right, acc, WIDE)
    to = d + part.to(tl.int64) * d_part + adapter.to(tl.int64) * d_adapter
    to += (left_cols * d_t)[:, None] + (cols * d_v)[None, :]
    tl.store(to, acc.to(d.dtype.element_ty), mask=left_ok[:, None] & col_ok[None, :])


GRADIENT = Kernel(
    gradient_kernel,
    key=("rows_about", "C", "R", "d_t"),
    interpreted=config(BLOCK_M=64, BLOCK_C=64),
    half=(
        config(BLOCK_M=32, BLOCK_C=64, stages=4),
        config(BLOCK_M=32, BLOCK_C=128, stages=4),
        config(BLOCK_M=64, BLOCK_C=128, stages=3),
    ),
    mixed=(config(BLOCK_M=16, BLOCK_C=64, stages=4), config(BLOCK_M=16, BLOCK_C=128, stages=3)),
    single=(config(BLOCK_M=16, BLOCK_C=64, stages=4), config(BLOCK_M=32, BLOCK_C=32, stages=3)),
    unaligned=config(BLOCK_M=16, BLOCK_C=64, stages=2),
    lengths=("C", "v_row", "v_col"),
    rank_blocks={"half": (16, 64), "mixed": (16, 32), "single": (16, 32)},
)
