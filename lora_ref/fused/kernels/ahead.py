"""Compile a kernel to a GPU's machine code on a machine that need not have one, and look at what it takes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lora_ref.fused.kernels.instances import Instance

# The most shared memory of one block, in bytes: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability".
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Resources:
    """Registers of a thread; bytes of memory that it spills to; bytes of shared memory of its block."""

    registers: int
    spilled: int
    shared: int

    def excess(self, architecture: int) -> str:
        """What is wrong with it, or ""."""
        wrong = []
        if self.spilled:
            wrong.append(f"spills {self.spilled} bytes")
        if self.shared > SHARED_MEMORY[architecture]:
            wrong.append(f"takes {self.shared} bytes of shared memory, of {SHARED_MEMORY[architecture]}")
        return " and ".join(wrong)


def resources(instance: Instance, architecture: int) -> Resources:
    """Of the compiled kernel; architecture 90 is sm_90."""
    attributes = {(nth,): [["tt.divisibility", 16]] for nth in instance.even}
    source = ASTSource(instance.function, dict(instance.signature), dict(instance.constants), attributes)
    options = {"num_warps": instance.config.num_warps, "num_stages": instance.config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    found = _dumped(compiled.asm["cubin"])
    # a thread's stack holds nothing but what it spills: the kernels have no arrays and call nothing
    return Resources(found["REG"], found["STACK"] + found["LOCAL"], compiled.metadata.shared)


def _dumped(binary: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(binary)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", out)}
