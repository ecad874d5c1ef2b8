"""What the project's commands have in common: how they look, and how they answer bad usage."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import typer


def application() -> typer.Typer:
    """Help on -h and without a command; plain text, and no traceback dressed up."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def told(program: str, command: Callable[[], int]) -> int:
    """The command's exit status; bad usage is one line and status 2, never a traceback."""
    from conformance.discovery import LoadError, UsageError
    from reports.escape import inline

    try:
        return command()
    except (UsageError, LoadError) as error:
        typer.echo(f"{program}: {inline(error)}", err=True)
        return 2


def hint(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to try in place of an unknown name: the nearest, or ``otherwise``, by default all that there are."""
    listed = list(known)
    near = difflib.get_close_matches(name, listed, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"there are: {', '.join(listed)}"
