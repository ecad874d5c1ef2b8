"""What the kernels ask of their arguments, told before anything runs; the same for real and for fake tensors."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from lora_ref.errors import LoraError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def kernel_calls() -> ModuleType:
    """The module that starts the kernels.

    Raises:
        LoraError: Triton is not installed.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise LoraError("Triton is not installed: pip install 'lora-conformance[triton]' (Linux only)") from error
    from lora_ref.fused.kernels import calls

    return calls


def device() -> str:
    """Where the kernels run: on the GPU, or on the CPU in the interpreter.

    Raises:
        LoraError: nowhere as things are; the message says what to do.
    """
    kernel_calls()
    from lora_ref.fused.kernels.launch import is_interpreted

    if is_interpreted():
        return "cpu"
    if not torch.cuda.is_available():
        raise LoraError("Triton's kernels need a GPU; on a CPU set TRITON_INTERPRET=1 before Python starts")
    return "cuda"


def check_factors(x: Tensor, a: Tensor, b: Tensor, out_features: int, base: torch.dtype) -> None:
    """x (M, in), and the last two axes of a (..., r, in) and b (..., out, r).

    Raises:
        LoraError: shapes do not fit together, or the dtypes are none that the kernels serve.
    """
    if x.dim() != 2 or a.shape[-1] != x.shape[1] or b.shape[-2] != out_features or a.shape[-2] != b.shape[-1]:
        shapes = f"x {_shape(x)}, A {_shape(a)}, B {_shape(b)}"
        raise LoraError(f"{shapes} do not fit: x is (M, in), A (r, in) and B (out, r) with out = {out_features}")
    if x.dtype is not base or base not in DTYPES:
        raise LoraError(f"x is {x.dtype} and the base {base}: both must be the same of {', '.join(map(str, DTYPES))}")
    if a.dtype is not b.dtype or a.dtype not in {base, torch.float32}:
        raise LoraError(f"A is {a.dtype} and B {b.dtype}: both must be {base}, or both torch.float32")


def check_base(x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    """x (M, in), w (out, in), bias (out,).

    Raises:
        LoraError: shapes do not fit together, or the dtypes differ.
    """
    if w.dim() != 2 or w.shape[1] != x.shape[-1]:
        raise LoraError(f"W {_shape(w)} does not fit x {_shape(x)}: W is (out, in), x (M, in)")
    if bias is not None and (bias.shape != w.shape[:1] or bias.dtype is not w.dtype):
        raise LoraError(f"bias {_shape(bias)} of {bias.dtype} does not fit W {_shape(w)} of {w.dtype}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
