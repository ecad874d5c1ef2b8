"""Named GPUs: what their vendors say of dense arithmetic, of memory and of its bandwidth."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import torch

from conformance.discovery import UsageError

_T, _G, _GIB = 10**12, 10**9, 2**30
_WIDE = 4  # bytes of a float32


@dataclass(frozen=True)
class Gpu:
    """half_flops: dense FLOP/s in bfloat16 and float16, summed in float32, without sparsity. single_flops: no TF32.

    name: as torch calls it. bandwidth: bytes/s. memory: bytes; the vendors' "GB" of memory are 2**30 of them here.
    source: the document of all figures.
    """

    name: str
    half_flops: float
    single_flops: float
    bandwidth: float
    memory: int
    source: str

    def flops(self, dtype: torch.dtype) -> float:
        """Peak FLOP/s of operations in this dtype."""
        return self.single_flops if dtype.itemsize >= _WIDE else self.half_flops


_A100 = "NVIDIA A100 Tensor Core GPU datasheet, SXM column (https://www.nvidia.com/en-us/data-center/a100/)"
_A100_40 = "NVIDIA A100 Tensor Core GPU Architecture whitepaper, tables 1 and 4 (A100 SXM4 40GB)"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet, SXM column, halved where marked 'with sparsity'"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet, SXM column, halved where marked 'with sparsity'"
_B200 = "NVIDIA Blackwell Architecture Technical Brief, HGX B200; memory as in the DGX B200 datasheet (1,440 GB of 8)"
_L40S = "NVIDIA L40S datasheet (https://www.nvidia.com/en-us/data-center/l40s/), column without sparsity"
_ADA = "NVIDIA Ada GPU Architecture whitepaper, appendix A, GeForce RTX 4090; half with float32 accumulation"
_MI300X = (
    "AMD Instinct MI300X Accelerator data sheet (https://www.amd.com/en/products/accelerators/instinct/mi300.html)"
)

GPUS = {
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", 312 * _T, 19.5 * _T, 1555 * _G, 40 * _GIB, _A100_40),
    "a100-80gb": Gpu("NVIDIA A100-SXM4-80GB", 312 * _T, 19.5 * _T, 2039 * _G, 80 * _GIB, _A100),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 989.5 * _T, 67 * _T, 3350 * _G, 80 * _GIB, _H100),
    "h200": Gpu("NVIDIA H200", 989.5 * _T, 67 * _T, 4800 * _G, 141 * _GIB, _H200),
    "b200": Gpu("NVIDIA B200", 2250 * _T, 80 * _T, 8000 * _G, 180 * _GIB, _B200),
    "l40s": Gpu("NVIDIA L40S", 362.05 * _T, 91.6 * _T, 864 * _G, 48 * _GIB, _L40S),
    "rtx-4090": Gpu("NVIDIA GeForce RTX 4090", 165.2 * _T, 82.6 * _T, 1008 * _G, 24 * _GIB, _ADA),
    "mi300x": Gpu("AMD Instinct MI300X", 1307.4 * _T, 163.4 * _T, 5300 * _G, 192 * _GIB, _MI300X),
}


def device(name: str) -> Gpu:
    """Case, spaces and underscores do not matter.

    Raises:
        UsageError: no such GPU; the nearest names are shown.
    """
    key = name.lower().replace(" ", "-").replace("_", "-")
    if key in GPUS:
        return GPUS[key]
    near = [known for known in GPUS if known.startswith(key)] or difflib.get_close_matches(key, GPUS, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(GPUS)}"
    raise UsageError(f"unknown GPU {name!r}: {hint}")


def find(torch_name: str) -> Gpu | None:
    """The GPU that ``torch.cuda.get_device_name`` calls so, if it is in the table. Variants of other speeds are not."""
    return next((gpu for gpu in GPUS.values() if gpu.name == torch_name), None)
