"""What the kernels have in common: which block a program works on, and products that are added up along an axis.

Kernels use only the built-in functions of ``triton.language``, none that is itself a kernel of its library: so whether
they run in the interpreter is settled when these modules are imported, however early Triton was.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(p, q, acc, WIDE: tl.constexpr):
    """acc + p q in float32. WIDE: the operands become float32 first, and the product is a full float32 one.

    float32 operands are never cut to TensorFloat-32.
    """
    if WIDE:
        p = p.to(tl.float32)
        q = q.to(tl.float32)
    return tl.dot(p, q, acc, input_precision="ieee")


@triton.jit
def add_product(acc, p, q, p_ok, q_ok, length, p_step, q_step, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """acc (I, J) + P Qᵀ, summed along an axis of ``length`` in ascending order.

    p (I,) and q (J,) point to the first element of each row of P and of Q, ``p_ok`` and ``q_ok`` say which of them
    exist, and the steps lead to the next element. What does not exist counts as zero and is not read.
    """
    inner = tl.arange(0, BLOCK)
    for start in range(0, length, BLOCK):
        ok = start + inner < length
        at = (start + inner).to(tl.int64)
        left = tl.load(p[:, None] + (at * p_step)[None, :], mask=p_ok[:, None] & ok[None, :], other=0.0)  # (I, BLOCK)
        right = tl.load(q[None, :] + (at * q_step)[:, None], mask=ok[:, None] & q_ok[None, :], other=0.0)  # (BLOCK, J)
        acc = dot(left, right, acc, WIDE)
    return acc


@triton.jit
def grouped_block(rows, cols, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, GROUP: tl.constexpr):
    """The block (i, j) of this program, in a one-dimensional grid over a matrix of rows x cols.

    GROUP blocks of rows walk through the columns together, so that what they read of them is still in the cache.
    """
    tall = (rows + BLOCK_I - 1) // BLOCK_I
    wide = (cols + BLOCK_J - 1) // BLOCK_J
    pid = tl.program_id(0)
    first = pid // (GROUP * wide) * GROUP
    here = tl.minimum(tall - first, GROUP)
    within = pid % (GROUP * wide)
    return first + within % here, within // here


@triton.jit
def routed_block(starts, adapters, BLOCK: tl.constexpr):
    """The adapter that program i of the first axis serves (-1: none), and where in the order its block begins and ends.

    ``starts`` (adapters + 2,) says where the rows of -1, 0, 1, ... begin. The blocks of segment g have the numbers from
    starts[g] // BLOCK + g on: each segment has as many as it needs, or one more, which is empty, and a grid of
    rows // BLOCK + adapters + 1 programs covers all of them, whatever the lengths are.
    """
    i = tl.program_id(0)
    low = i * 0  # a search between these two: the last segment whose first block is at most i
    high = low + adapters + 1
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(starts + middle) // BLOCK + middle <= i
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    begin = tl.load(starts + low)
    first = begin + (i - begin // BLOCK - low) * BLOCK
    return low - 1, first, tl.load(starts + low + 1)
