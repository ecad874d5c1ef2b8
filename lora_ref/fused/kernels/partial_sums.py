"""The second pass of a sum that was split into parts: they are added in their order, always to the same bits."""

from __future__ import annotations

import triton
import triton.language as tl

from lora_ref.fused.kernels.launch import Kernel, config


@triton.jit
def partial_sums_kernel(p, out, size, parts, BLOCK: tl.constexpr):
    """out (size,) = the sum over parts of p (parts, size), both contiguous; one block of elements per program."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    ok = at < size
    acc = tl.full((BLOCK,), 0.0, tl.float32)
    for part in range(parts):
        acc += tl.load(p + tl.cast(part, tl.int64) * size + at, mask=ok, other=0.0)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=ok)


PARTIAL_SUMS = Kernel(partial_sums_kernel, key=(), interpreted=config(BLOCK=1024), single=(config(BLOCK=1024),))
