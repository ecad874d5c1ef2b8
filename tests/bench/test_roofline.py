"""Work against sums by hand, the table of GPUs, and the map of where LoRA is worth it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.commands.crossover import execute
from bench.simulate.crossover import cells
from bench.simulate.devices import GPUS, Gpu, device, find
from bench.simulate.roofline import bound, seconds
from bench.simulate.work import Work
from conformance.discovery import UsageError

TOY = Gpu("toy", half_flops=1e9, single_flops=1e6, bandwidth=1e3, memory=2**20, source="made up")


def _work(function: Callable[[], object]) -> Work:
    with Work() as work:
        function()
    return work


def test_a_product_reads_two_matrices_and_writes_one() -> None:
    a, b = torch.ones(8, 16), torch.ones(16, 4)
    work = _work(lambda: a @ b)
    assert (work.flops, work.nbytes, work.n_ops) == (2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4), 1)


def test_views_and_empty_memory_cost_nothing() -> None:
    a = torch.ones(8, 16)
    work = _work(lambda: (a.T, a[2:], a.reshape(16, 8), a.detach(), torch.empty(100), torch.empty_like(a)))
    assert work.nbytes == 0
    assert work.n_ops > 5


def test_in_place_is_read_and_written_and_an_operand_given_twice_is_read_once() -> None:
    a = torch.ones(100)
    assert _work(lambda: a.add_(1)).nbytes == 800
    assert _work(lambda: a * a).nbytes == 800
    assert _work(lambda: torch.ones(1).expand(100) + a).nbytes == 4 + (4 + 400) + 400  # the one is written, then read


def test_an_embedding_reads_the_rows_that_come_out() -> None:
    table = nn.Embedding(1000, 4)
    ids = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        assert _work(lambda: table(ids)).nbytes == 2 * 3 * 4 * 4


def test_fused_adamw_reads_four_tensors_and_writes_three() -> None:
    p = nn.Parameter(torch.ones(1000))
    adamw = torch.optim.AdamW([p], fused=True)
    for _ in range(2):
        p.grad = torch.ones(1000)
        work = _work(adamw.step)
    assert 7 * 4000 <= work.nbytes <= 8 * 4000 + 100  # its schema says that it may write the gradient too


def test_the_longer_of_arithmetic_and_memory_counts() -> None:
    a, b = torch.ones(2, 100, 100, dtype=torch.bfloat16)
    work = _work(lambda: a @ b)
    flops, nbytes = 2 * 100**3, 3 * 100 * 100 * 2
    assert (work.flops, work.nbytes) == (flops, nbytes)
    assert seconds(work, TOY) == nbytes / 1e3
    assert bound(work, TOY) == 1
    fast = Gpu("fast", 1e9, 1e6, 1e12, 1, "made up")
    assert seconds(work, fast) == flops / 1e9
    assert bound(work, fast) == 0


def test_float32_runs_at_its_own_rate() -> None:
    square = torch.ones(100, 100)
    fast = Gpu("fast", 1e9, 1e6, 1e12, 1, "made up")
    assert seconds(_work(lambda: square @ square), fast) == 2 * 100**3 / 1e6


def test_nothing_takes_no_time() -> None:
    assert seconds(Work(), TOY) == bound(Work(), TOY) == 0


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_is_complete(name: str) -> None:
    gpu = device(name.upper().replace("-", " "))
    assert gpu is find(gpu.name)
    assert gpu.half_flops > gpu.single_flops > 1e13
    assert 5e11 < gpu.bandwidth < 1e13
    assert gpu.memory >= 24 * 2**30
    assert len(gpu.source) > 10


def test_half_precision_is_dense_and_float32_no_tf32() -> None:
    assert device("h100").half_flops == 989.5e12  # the datasheet's 1,979 is with sparsity
    assert device("a100-80gb").single_flops == 19.5e12  # 156 is TF32


def test_variants_are_not_taken_for_one_another() -> None:
    assert find("NVIDIA H100 PCIe") is None
    with pytest.raises(UsageError, match="did you mean a100-40gb or a100-80gb"):
        device("a100")


def test_the_map_rests_on_the_closed_form() -> None:
    found = list(cells("peft", device("h100"), [1024, 8192], [64, 8192], [8, 256], "bfloat16"))
    assert len(found) == 8
    for cell in found:
        m, k, r = cell.tokens, cell.hidden, cell.rank
        assert cell.lora_flops == 4 * m * k * k + 12 * m * k * r
        assert cell.full_flops == 6 * m * k * k
        assert (cell.flops_ratio < 1) == (r < k / 6)
    at = {(c.hidden, c.tokens, c.rank): c for c in found}
    assert at[1024, 8192, 8].slower_with_fewer  # bound by memory
    assert at[8192, 8192, 8].time_ratio < 1
    assert at[1024, 64, 256].time_ratio < 1 < at[1024, 64, 256].flops_ratio  # full fine-tuning moves W's states


def test_the_command_prints_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "map.json"
    assert execute("reference", gpu="h100", hidden=[1024], tokens=[64, 8192], rank=[8], out=out) == 0
    text = capsys.readouterr().out
    assert "r 8: FLOPs, time" in text
    assert "Slower for fewer FLOPs in 1 of 2 cells" in text
    assert [row["tokens"] for row in json.loads(out.read_text(encoding="utf-8"))["cells"]] == [64, 8192]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gpu": "4090"}, "did you mean rtx-4090"),
        ({"rank": [0]}, "at least 1"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"backend": "loralib"}, "no Model facet"),
    ],
)
def test_bad_requests(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        execute(**({"backend": "peft", "gpu": "h100", "hidden": [64], "tokens": [4], "rank": [2]} | changed))
