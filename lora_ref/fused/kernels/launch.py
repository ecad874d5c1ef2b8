"""How a kernel is started: tuned over a few configurations on a GPU, with one fixed small one in the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from lora_ref.errors import LoraError

Grid = Callable[[Mapping[str, Any]], tuple[int, ...]]

MOST = 8  # configurations that are tried for one kernel and one kind of dtypes
_PROGRAMS = 264  # a sum is split until there are so many programs: two for each of an H100's multiprocessors
_SHORTEST, _PARTS, _NOMINAL = 512, 16, 64


def config(*, warps: int = 4, stages: int = 1, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


class Kernel:
    """A jitted function and the configurations that it may run in.

    The first call with new shapes on a GPU times them all. Which is the fastest may differ from one process to the
    next, and with it the last bits of a result; TRITON_CACHE_AUTOTUNING=1 keeps the choice on disk.

    key: arguments for each combination of which it is tuned anew.
    half, mixed, single: configurations by kind of dtypes (see ``kind_of``).
    unaligned: the one for tensors whose rows do not begin at multiples of 16 bytes, with any dtypes.
    interpreted: block sizes in the interpreter, where there is nothing to tune.
    lengths: arguments that tell where rows begin and end; the rank itself may be odd.
    rank_blocks: the block sizes along the rank, by kind; the first that holds the rank is taken, or the last.
    """

    def __init__(
        self,
        function: Any,
        *,
        key: Sequence[str],
        interpreted: triton.Config,
        half: Sequence[triton.Config] = (),
        mixed: Sequence[triton.Config] = (),
        single: Sequence[triton.Config] = (),
        unaligned: triton.Config | None = None,
        lengths: Sequence[str] = (),
        rank_blocks: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.function, self.key, self.interpreted, self.lengths = function, tuple(key), interpreted, tuple(lengths)
        self.configs = {"half": half, "mixed": mixed, "single": single}
        if unaligned is not None:
            self.configs["unaligned"] = (unaligned,)
        if any(len(found) > MOST for found in self.configs.values()):
            raise ValueError(f"a kernel is tuned over at most {MOST} configurations")
        self.rank_blocks = rank_blocks or {}

    @cached_property
    def tuned(self) -> Mapping[str, Any]:
        return {
            kind: triton.autotune(list(configs), list(self.key))(self.function)
            for kind, configs in self.configs.items()
            if configs
        }

    def __call__(self, grid: Grid, kind: str, **arguments: Any) -> None:
        """Run on the tensors' device; ``grid`` is told the block sizes.

        Raises:
            LoraError: the tensors are in a CPU's memory and the kernels are not interpreted.
        """
        device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
        if is_interpreted():
            self.function[grid](**self.complete(kind, arguments), **self.interpreted.kwargs)
            return
        if device.type == "cpu":
            raise LoraError("Triton's kernels need a GPU; on a CPU set TRITON_INTERPRET=1 before Python starts")
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.tuned[self.chosen(kind, arguments)][grid](**self.complete(kind, arguments))

    def complete(self, kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """With the block size along the rank, where there is one."""
        if not self.rank_blocks:
            return dict(arguments)
        blocks, rank = self.rank_blocks[kind], arguments["R"]
        return {**arguments, "BLOCK_R": next((block for block in blocks if rank <= block), blocks[-1])}

    def chosen(self, kind: str, arguments: Mapping[str, Any]) -> str:
        """The kind whose configurations fit: that of the dtypes if all rows begin at multiples of 16 bytes."""
        usual = {0, 1, arguments.get("R")}
        lengths = (arguments[name] for name in self.lengths)
        tensors = (value for value in arguments.values() if isinstance(value, Tensor))
        even = all(n in usual or n % 16 == 0 for n in lengths) and all(t.data_ptr() % 16 == 0 for t in tensors)
        return kind if even or "unaligned" not in self.configs else "unaligned"


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter: settled by TRITON_INTERPRET when they were imported."""
    from lora_ref.fused.kernels.blocks import dot

    return not isinstance(dot, JITFunction)


def kind_of(base: torch.dtype, adapter: torch.dtype) -> str:
    """half: both in 16 bits; single: both in float32; mixed: float32 adapters over a base of 16 bits."""
    if adapter is base:
        return "single" if base is torch.float32 else "half"
    return "mixed"


def is_wide(p: torch.dtype, q: torch.dtype) -> bool:
    """Whether a product of these is formed from float32 copies: dtypes differ, or the interpreter cannot do it.

    Interpreted dots of bfloat16 give garbage and no error (Triton 3.7 to 3.9).
    """
    return p is not q or (p is torch.bfloat16 and is_interpreted())


def stored_as(dtype: torch.dtype) -> torch.dtype:
    """What a kernel writes where ``dtype`` is wanted.

    The interpreter cuts bfloat16 off where a GPU rounds it (Triton 3.7 to 3.9), so there torch does the rounding.
    """
    return torch.float32 if dtype is torch.bfloat16 and is_interpreted() else dtype


def blocks(size: int, block: int) -> int:
    return -(-size // block)


def rows_about(rows: int) -> int:
    """The next power of two: near-by numbers of rows are tuned once."""
    return 1 << max(rows - 1, 0).bit_length()


def split(length: int, *sizes: int) -> int:
    """Into how many parts a sum of ``length`` terms is split where the output, of these sizes, gives few programs.

    It depends on the shapes alone, so neither the device nor the tuning changes the bits of a result by it.
    """
    programs = 1
    for size in sizes:
        programs *= blocks(size, _NOMINAL)
    return max(1, min(blocks(_PROGRAMS, programs), length // _SHORTEST, _PARTS))
