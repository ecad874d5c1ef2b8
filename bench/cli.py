"""``lora-bench``: what LoRA implementations cost, measured and simulated."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from conformance.command_line import application, told

app = application()


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


class Engine(StrEnum):
    LOCAL = "local"
    RAY = "ray"


Folder = Annotated[Path, typer.Argument(help="A folder of runs, also in folders of it, or one run's Parquet file.")]
Backends = Annotated[
    list[str],
    typer.Option("--backend", "-b", metavar="NAME", help="Registered name or package.module:object. Repeatable."),
]
Profile = Annotated[str, typer.Option(help="cpu-quick, cpu, gpu or gpu-weekly.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="TEXT", help="Only cases with this in their id. Repeatable.")
]
OnDevice = Annotated[Device, typer.Option(help="Where the cases run.")]
ByEngine = Annotated[Engine, typer.Option(help="Processes of this machine, or a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Of a running Ray, or auto. Default: start one here.")
]
Gate = Annotated[float, typer.Option(min=0.001, metavar="X", help="Changes of time up to this share are no news.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as Markdown too, for a pull request.")]


@app.callback()
def main() -> None:
    """What does a LoRA implementation cost? Measure, simulate, compare; never without knowing that it is right.

    \b
    lora-bench run --profile cpu-quick --backend reference --backend peft --out runs
    lora-bench simulate --model llama-2-7b --backend peft --r 16 --batch 4 --seq 512 --gpu h100
    """  # noqa: D301 - typer wraps no paragraph that begins so


@app.command()
def run(
    backend: Backends,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder that collects runs.")],
    profile: Profile = "cpu-quick",
    only: Only = None,
    device: OnDevice = Device.CPU,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of one process. Default: all cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="How often the backends take turns.")] = 5,
    conformance: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Verdicts from this results.jsonl, of what is installed here. Default: judge the backends first.",
        ),
    ] = None,
    engine: ByEngine = Engine.LOCAL,
    address: Address = None,
) -> None:
    """Measure time and memory of backends on the cases of a profile; the bare frozen layer always runs along.

    \b
    Writes DIR/<run>.parquet, <run>.log and, unless --conformance gave it, <run>.conformance.jsonl.
    A run that was cut off is taken up by the same command, and no row is lost or doubled.
    Exit status: 0 all measured, 1 something wrong, crashed, timed out or out of memory, 2 bad
    usage.

    \b
    lora-bench run --backend reference --backend peft --out runs
    lora-bench run --backend peft --profile gpu --device cuda --out runs
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.run import Request, execute
    from bench.engines.local import Effort
    from bench.engines.processes import cores

    only_ = tuple(only or ())
    asked = Request(
        tuple(dict.fromkeys(backend)), profile, device.value, threads or cores(), only_, conformance, Effort(rounds)
    )
    raise typer.Exit(_told(lambda: execute(asked, out, engine.value, address)))


@app.command()
def nightly(
    backend: Backends,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of all nights: the history.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="PATH_OR_ID", help="A transformers model to judge on too. Repeatable."),
    ] = None,
    profile: Profile = "cpu-quick",
    only: Only = None,
    device: OnDevice = Device.CPU,
    engine: ByEngine = Engine.LOCAL,
    address: Address = None,
) -> None:
    """Conformance, benchmarks, what changed since the nights before, a report; all is run, whatever is red.

    \b
    Writes a new folder DIR/<time> with conformance/, runs/, history.md, report/ (with the extra
    lora-conformance[reports]) and summary.md. Keep DIR from night to night, one for each kind of
    machine: the history is all runs in it.
    Exit status: 0 all green; 1 conformance is red, a figure could not be taken or got worse, or
    a step broke off; 2 bad usage.

    \b
    lora-bench nightly --backend reference --backend peft --out results/nightly
    lora-bench nightly --backend peft --profile gpu --device cuda --out results/nightly-gpu
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.nightly import Request, execute

    backends, cases_ = tuple(dict.fromkeys(backend)), tuple(only or ())
    asked = Request(backends, tuple(model or ()), profile, device.value, cases_, engine.value, address)
    raise typer.Exit(_told(lambda: execute(asked, out)))


@app.command()
def cases(profile: Annotated[str, typer.Argument(help="cpu-quick, cpu, gpu or gpu-weekly.")] = "cpu-quick") -> None:
    """List the cases of a profile.

    \b
    lora-bench cases gpu
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.run import Request, chosen

    def listed() -> int:
        typer.echo("\n".join(case.case_id for case in chosen(Request((), profile, "cpu", 1))))
        return 0

    raise typer.Exit(_told(listed))


@app.command()
def compare(old: Folder, new: Folder, gate: Gate = 0.04, markdown: Markdown = None) -> None:
    """What changed from one run to another; a folder stands for its newest run.

    \b
    Deterministic figures must be equal. A time is faster or slower if the samples differ
    (Mann-Whitney, p < 0.002) by more than the gate relative to the bare layer of the same run,
    and ambiguous if neither that nor its contrary can be said.
    Exit status: 0 no regression, 1 a regression, 2 bad usage.

    \b
    lora-bench compare runs/main.parquet runs/branch.parquet --markdown comment.md
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.compare import execute

    raise typer.Exit(_told(lambda: execute(old, new, gate=gate, markdown=markdown)))


@app.command()
def history(
    folder: Folder,
    backend: Annotated[str | None, typer.Option("--backend", "-b", metavar="NAME", help="Of this one only.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="This figure only. Default: all.")] = None,
    gate: Gate = 0.04,
    markdown: Markdown = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="All series as JSON too, for lora-report.")
    ] = None,
) -> None:
    """How a figure went from run to run, and where it stepped.

    \b
    Exit status: 0 no regression, 1 the newest runs stand after a step to the worse, 2 bad usage.

    \b
    lora-bench history runs --backend peft --metric time_ms
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.history import execute

    chosen = {"backend": backend, "metric": metric, "gate": gate}
    raise typer.Exit(_told(lambda: execute(folder, **chosen, markdown=markdown, out=out)))  # type: ignore[arg-type]


@app.command()
def simulate(
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="Built-in name, path, config.json or id.")
    ],
    backend: Annotated[str, typer.Option("--backend", "-b", metavar="NAME", help="As for run.")] = "peft",
    r: Annotated[int, typer.Option("--r", metavar="N", help="Rank.")] = 16,
    batch: Annotated[int, typer.Option(metavar="N", help="Sequences of one step.")] = 4,
    seq: Annotated[int, typer.Option(metavar="N", help="Tokens of a sequence.")] = 512,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="Whose memory and speed.")] = "h100",
    alpha: Annotated[float, typer.Option(metavar="X")] = 32.0,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="Of the model.")] = "bfloat16",
    adapter_dtype: Annotated[str | None, typer.Option(metavar="NAME", help="Of A and B. Default: the model's.")] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", metavar="SUFFIX", help="Default: all projections. Repeatable.")
    ] = None,
    *,
    checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing/--no-checkpointing", help="Default: show both.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The figures as JSON too, for lora-report.")
    ] = None,
) -> None:
    """Will it fit, and what will it cost? LoRA beside full fine-tuning, without a GPU and without weights.

    \b
    lora-bench simulate --model llama-2-7b --backend peft --r 16 --batch 4 --seq 512 --gpu h100
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.simulate import execute

    named = {"r": r, "batch": batch, "seq": seq, "gpu": gpu, "alpha": alpha, "dtype": dtype}
    more = {"adapter_dtype": adapter_dtype, "target": target or (), "checkpointing": checkpointing, "out": out}
    raise typer.Exit(_told(lambda: execute(model, backend, **named, **more)))  # type: ignore[arg-type]


@app.command()
def crossover(
    backend: Annotated[str, typer.Option("--backend", "-b", metavar="NAME", help="As for run.")] = "peft",
    gpu: Annotated[str, typer.Option(metavar="NAME", help="Whose speed.")] = "h100",
    dtype: Annotated[str, typer.Option(metavar="NAME", help="Of the layer.")] = "bfloat16",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="All cells as JSON too, for lora-report.")
    ] = None,
) -> None:
    """Where LoRA beats full fine-tuning: FLOPs and roofline time over hidden size, tokens and rank.

    \b
    lora-bench crossover --backend peft --gpu h100
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from bench.commands.crossover import execute

    raise typer.Exit(_told(lambda: execute(backend, gpu=gpu, dtype=dtype, out=out)))


def _told(command: Callable[[], int]) -> int:
    try:
        return told("lora-bench", command)
    except ModuleNotFoundError as error:
        typer.echo(f"lora-bench: {error.name} is not installed: pip install 'lora-conformance[bench]'", err=True)
        return 2
