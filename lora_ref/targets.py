"""Which modules a spec names: suffixes of dotted paths, never suffixes of words."""

from __future__ import annotations

from collections.abc import Iterable

from lora_ref.errors import LoraError


def matches(pattern: str, path: str) -> bool:
    """``q_proj`` and ``0.q_proj`` match ``layers.0.q_proj``; ``proj`` and ``layers`` do not."""
    return path == pattern or path.endswith("." + pattern)


def select(patterns: Iterable[str], paths: Iterable[str], what: str = "target") -> list[str]:
    """The paths that any pattern matches, in the order of ``paths``.

    Raises:
        LoraError: a pattern matches no path; the message names it and some paths that exist.
    """
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            known = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths})) or "none"
            raise LoraError(f"{what} {pattern!r} matches no module; modules that can carry LoRA end in: {known}")
    return [path for path in paths if any(matches(pattern, path) for pattern in patterns)]
