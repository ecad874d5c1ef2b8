"""The table of what every compiled kernel takes, and the command that makes it, with or without a GPU:

python -m lora_ref.fused.kernels.table docs/kernels.csv

It takes half an hour of one core. A kernel that spills, or takes more shared memory than a block may have, is an error:
exit code 1, and the row says so.
"""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from lora_ref.fused.kernels.ahead import SHARED_MEMORY, Resources, resources
from lora_ref.fused.kernels.instances import Instance, all_instances
from lora_ref.fused.kernels.launch import is_interpreted

_SOURCES = (
    "blocks", "calls", "expand", "gradient", "instances", "launch", "linear", "partial_sums", "shrink",
)  # fmt: skip
Row = dict[str, str]


def digest() -> str:
    """Of everything that decides what is compiled, but for Triton itself."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in _SOURCES)).hexdigest()


def head() -> str:
    import triton

    return f"# sources {digest()}, triton {triton.__version__}"


def one_of_each(instances: Iterable[Instance]) -> list[Instance]:
    """Every kernel in every configuration for bfloat16 once, with a rank of 16 where that is a case of its own."""
    chosen: dict[tuple[str, str], Instance] = {}
    for instance in sorted(instances, key=lambda instance: instance.rank != 16):
        if instance.base == instance.adapter == "bfloat16" and instance.aligned:
            chosen.setdefault((instance.kernel, str(instance.config)), instance)
    return list(chosen.values())


def rows(instances: list[Instance], jobs: int) -> Iterator[tuple[Row, list[str]]]:
    """Each instance compiled for each architecture: its row of the table, and what is wrong with it."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for instance, found in zip(instances, pool.map(_compiled, instances), strict=True):
            row = {**described(instance)}
            for architecture, used in found.items():
                row |= {f"sm_{architecture} {name}": str(value) for name, value in asdict(used).items()}
            wrong = [f"sm_{at} {excess}" for at, used in found.items() if (excess := used.excess(at))]
            yield row, wrong


def described(instance: Instance) -> Row:
    config = instance.config
    return {
        "kernel": instance.kernel,
        "use": instance.use,
        "base": instance.base,
        "adapter": instance.adapter,
        "rank": str(instance.rank),
        "aligned": "yes" if instance.aligned else "no",
        "blocks": " ".join(f"{name.removeprefix('BLOCK_')}{size}" for name, size in config.kwargs.items()),
        "warps": str(config.num_warps),
        "stages": str(config.num_stages),
    }


def read(path: Path) -> tuple[str, list[Row]]:
    """The first line, and the rows."""
    with path.open(encoding="utf-8", newline="") as file:
        return file.readline().rstrip("\n"), list(csv.DictReader(file))


def _write(path: Path, made: list[Row]) -> None:
    """All of it or nothing."""
    beside = path.with_suffix(".part")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write(head() + "\n")
        writer: Any = csv.DictWriter(file, list(made[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
    beside.replace(path)


def _compiled(instance: Instance) -> dict[int, Resources]:
    return {architecture: resources(instance, architecture) for architecture in SHARED_MEMORY}


def main(
    out: Annotated[Path, typer.Argument(help="CSV file to write.")],
    *,
    quick: Annotated[bool, typer.Option(help="Each kernel and configuration once, for bfloat16 and r = 16.")] = False,
    only: Annotated[str, typer.Option(help="This kernel alone, such as linear.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
) -> None:
    """Compile all kernels for sm_80, sm_90 and sm_100 and write down what they take."""
    if is_interpreted():
        raise typer.BadParameter("the interpreter compiles nothing: unset TRITON_INTERPRET")
    instances = all_instances()
    instances = one_of_each(instances) if quick else instances
    instances = [instance for instance in instances if only in {"", instance.kernel}]
    if not instances:
        raise typer.BadParameter(f"there is no kernel {only!r}", param_hint="--only")
    made, bad = [], False
    for row, wrong in track(rows(instances, jobs), "compiling", total=len(instances)):
        made.append(row)
        if wrong:
            bad = True
            typer.echo(f"{' '.join(list(row.values())[:9])}: {', '.join(wrong)}", err=True)
    _write(out, made)
    raise typer.Exit(int(bad))


if __name__ == "__main__":
    typer.run(main)
