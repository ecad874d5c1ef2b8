"""Where the kernels are tested: in Triton's interpreter on a machine without a GPU, on the GPU where there is one.

Kernels are for the interpreter or for a GPU from the moment that they are imported, which none of the tests does before
this file is read. TRITON_INTERPRET=1 sends them to the interpreter on a machine with a GPU too.
"""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """What tensors are put on; each test runs on both, and is skipped on the one that this process does not have."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if request.param == "cuda" and not HAS_GPU:
        pytest.skip("needs a CUDA GPU")
    from lora_ref.fused.kernels.launch import is_interpreted

    if is_interpreted() != (request.param == "interpreted"):
        pytest.skip("in this process the kernels run on the " + ("CPU" if is_interpreted() else "GPU"))
    return "cpu" if is_interpreted() else "cuda"
