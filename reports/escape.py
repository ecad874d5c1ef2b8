"""Text that came from a backend, made safe to show: it cannot move the cursor, start a tag or end a table's cell."""

from __future__ import annotations

import html
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in r"\`*_{}[]#|~!"})


def plain(text: object) -> str:
    """Control and direction characters are shown as escapes; lines and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else _shown(c) for c in str(text))


def inline(text: object) -> str:
    """The same on one line."""
    return " ".join(plain(text).split())


def markdown(text: object) -> str:
    """On one line, for a cell or a sentence: no markup of Markdown or HTML is left in it."""
    return html.escape(inline(text), quote=False).translate(_MARKDOWN)


def fenced(text: object) -> str:
    """A block of code whose fence is longer than any run of backticks in it."""
    body = plain(text)
    runs = [len(run) for run in "".join(c if c == "`" else " " for c in body).split()]
    fence = "`" * max(3, 1 + max(runs, default=0))
    return f"{fence}text\n{body}\n{fence}"


def _shown(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
