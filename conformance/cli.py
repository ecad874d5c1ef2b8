"""``lora-conformance``: one command judges LoRA implementations."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from conformance.command_line import application, told

app = application()


class Profile(StrEnum):
    QUICK = "quick"
    FULL = "full"


class Listing(StrEnum):
    ALL = "all"
    INVARIANTS = "invariants"
    BACKENDS = "backends"
    FEATURES = "features"


def _default_workers() -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux can say which cores this process may use
        cores = os.cpu_count() or 1
    return min(cores, 8)


def _version(on: bool) -> None:  # noqa: FBT001 - typer calls it so
    if on:
        from conformance.results import version

        typer.echo(f"lora-conformance {version()}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Is a LoRA implementation right? Judge any backend by the invariants that every one must satisfy.

    \b
    lora-conformance list backends
    lora-conformance run --backend peft --out results/peft
    """  # noqa: D301 - typer wraps no paragraph that begins so


@app.command()
def run(
    backend: Annotated[
        list[str],
        typer.Option("--backend", "-b", metavar="NAME", help="Registered name or package.module:object. Repeatable."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="New or empty folder for results, matrix and log.")
    ],
    profile: Annotated[Profile, typer.Option(help="How many cases are drawn per trial.")] = Profile.FULL,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of all that is drawn.")] = 0,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="PATH_OR_ID", help="A transformers model to judge on too. Repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes. Default: one per core, at most 8.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Limit per trial.")] = 60.0,
) -> None:
    """Judge backends: show the matrix, every failure and every known gap.

    \b
    Writes DIR/results.jsonl (every verdict), DIR/matrix.md and DIR/log.txt.
    Exit status: 0 nothing red, 1 something red, 2 bad usage or a backend that cannot be
    imported, 130 interrupted.

    \b
    lora-conformance run --backend peft --backend reference --out results --profile quick
    lora-conformance run --backend my_package.adapter:backend --out results/mine
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from conformance.commands.run import Request, execute

    asked = Request(backend, out, profile.value, seed, model or [], workers or _default_workers(), timeout)
    raise typer.Exit(_told(lambda: execute(asked)))


@app.command(name="list")
def list_(
    what: Annotated[Listing, typer.Argument(help="invariants, backends, features or all.")] = Listing.ALL,
) -> None:
    """List invariants with their statements, backends with what they offer, and features.

    \b
    lora-conformance list invariants
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from conformance.commands import listing

    parts = {
        Listing.INVARIANTS: listing.invariants,
        Listing.BACKENDS: listing.backends,
        Listing.FEATURES: listing.features,
    }
    for name, lines in parts.items():
        if what in {name, Listing.ALL}:
            typer.echo("\n".join(lines()) + "\n")


@app.command()
def reproduce(
    invariant: Annotated[str, typer.Argument(help="Id of the invariant.")],
    backend: Annotated[str, typer.Option("--backend", "-b", metavar="NAME", help="As for run.")],
    facet: Annotated[str, typer.Option("--facet", metavar="FACET", help="operator, layer, model or store.")],
    case: Annotated[str, typer.Option("--case", metavar="JSON", help="The case, as a failure prints it.")],
) -> None:
    """Judge exactly one case, as the last line of a failure asks for.

    \b
    Exit status: 1 it fails (reproduced), 0 it holds, 2 bad usage.

    \b
    lora-conformance reproduce forward-oracle --backend peft --facet layer \\
        --case '{"in_features":3,"out_features":2,"r":2,"alpha":4.0,"tier":"exact","dtype":"float32","seed":0}'
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from conformance.commands.reproduce import execute

    raise typer.Exit(_told(lambda: execute(invariant, backend, facet, case)))


@app.command()
def mutants(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New or empty folder for the tables.")],
    *,
    measure: Annotated[
        bool, typer.Option("--measure", help="Kill rate over 20 seeds, false alarms in 100,000 cases, resolution.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes. Default: one per core.")] = None,
) -> None:
    """Judge the suite itself: which broken backends do the invariants find?

    \b
    Writes DIR/kills.md and .csv, DIR/kill-matrix.csv, and with --measure also kill-rate-misses,
    false-alarms and resolution.
    Exit status: 0 all mutants die and nothing right is found wrong, 1 otherwise, 2 bad usage.

    \b
    lora-conformance mutants --out results/mutants
    """  # noqa: D301 - typer wraps no paragraph that begins so
    from conformance.commands.mutants import execute

    raise typer.Exit(_told(lambda: execute(out, workers or _default_workers(), measure=measure)))


def _told(command: Callable[[], int]) -> int:
    return told("lora-conformance", command)
