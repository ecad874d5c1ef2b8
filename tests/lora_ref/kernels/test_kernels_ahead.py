"""All kernels compiled for GPUs that need not be here: what does not fit on one, or spills, is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = "python -m lora_ref.fused.kernels.table docs/kernels.csv"
TABLE = Path(__file__).parents[3] / "docs" / "kernels.csv"

_NAMES = """
import sys
from lora_ref.fused.kernels.instances import all_instances
from lora_ref.fused.kernels.table import described, head, one_of_each
print(head())
for instance in all_instances():
    print(*described(instance).values(), sep=",")
"""


def in_a_process_that_compiles(*arguments: str) -> subprocess.CompletedProcess[str]:
    """This one may be the interpreter's."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *arguments], env=environment, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("kernel", ["shrink", "linear", "expand", "gradient", "partial_sums"])
def test_every_configuration_compiles_and_fits_and_is_as_the_table_says(kernel: str, tmp_path: Path) -> None:
    """For bfloat16 and a rank of 16; the table has all dtypes and ranks."""
    from lora_ref.fused.kernels.table import read

    out = tmp_path / "made.csv"
    run = in_a_process_that_compiles(
        "-m", "lora_ref.fused.kernels.table", str(out), "--quick", "--only", kernel, "--jobs", "1"
    )
    assert run.returncode == 0, run.stderr
    first, made = read(out)
    recorded_first, recorded = read(TABLE)
    assert made
    if first == recorded_first:  # the same sources and the same Triton
        assert all(row in recorded for row in made)


def test_the_table_is_of_these_sources_and_complete() -> None:
    from lora_ref.fused.kernels.table import read

    run = in_a_process_that_compiles("-c", _NAMES)
    assert run.returncode == 0, run.stderr
    first, *wanted = run.stdout.splitlines()
    recorded_first, recorded = read(TABLE)
    assert recorded_first.split(",")[0] == first.split(",")[0], f"out of date: run {COMMAND}"
    assert [",".join(list(row.values())[:9]) for row in recorded] == wanted


def test_nothing_in_the_table_spills_or_takes_too_much() -> None:
    from lora_ref.fused.kernels.ahead import SHARED_MEMORY, Resources
    from lora_ref.fused.kernels.table import read

    for row in read(TABLE)[1]:
        for at in SHARED_MEMORY:
            used = Resources(*(int(row[f"sm_{at} {name}"]) for name in ("registers", "spilled", "shared")))
            assert used.registers > 0
            assert not used.excess(at), row


def test_a_spill_and_too_much_shared_memory_are_told() -> None:
    from lora_ref.fused.kernels.ahead import Resources

    assert Resources(32, 0, 1024).excess(80) == ""
    assert Resources(255, 8, 1024).excess(90) == "spills 8 bytes"
    assert Resources(32, 0, 200_000).excess(90) == ""
    assert "takes 200000 bytes of shared memory" in Resources(32, 0, 200_000).excess(80)


_SPILLING = """
from dataclasses import replace
from lora_ref.fused.kernels.ahead import resources
from lora_ref.fused.kernels.instances import all_instances
from lora_ref.fused.kernels.launch import config
linear = next(i for i in all_instances() if i.kernel == "linear" and dict(i.constants)["BLOCK_N"] == 256)
print(resources(replace(linear, config=config(warps=4, stages=3)), 80).spilled)
"""


def test_the_measure_sees_a_spill() -> None:
    """A block of 128 x 256 sums in the registers of half the usual warps."""
    run = in_a_process_that_compiles("-c", _SPILLING)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0
