"""What is wrong with an input, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class InputError(Exception):
    """``what`` is wrong with the file; the others are read all the same."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path, self.what = path, what


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: it is not there, not readable, empty or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(path, "cannot be read: it is not UTF-8") from None
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    if not text.strip():
        raise InputError(path, "is empty")
    return text


def json_of(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        InputError: see ``text_of``; or it is no JSON.
    """
    try:
        return json.loads(text_of(path))
    except (ValueError, RecursionError):
        raise InputError(path, "is not JSON, or is cut off") from None
