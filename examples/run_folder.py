"""The folder of a run: what was asked for, checkpoints, adapters, metrics. It is taken up again, never written over."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.discovery import UsageError

RUN, METRICS = "run.json", "metrics.json"


class RunFolder:
    """``--out``. The same command goes on where it was cut off; another one is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            begun = any(path.iterdir())
        except OSError as error:
            raise UsageError(f"--out {path} cannot be used: {error.strerror}") from None
        if begun and not (path / RUN).is_file():
            raise UsageError(f"--out {path} is not empty, and no run of this program; nothing is ever written over")

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def finished(self) -> bool:
        return self.metrics.is_file()

    def claim(self, settings: Mapping[str, Any]) -> str:
        """Note what is asked for, or compare with what was; the digest that names this run.

        Raises:
            UsageError: the folder belongs to a run of something else.
        """
        wanted, file = json.loads(json.dumps(settings)), self.path / RUN
        if file.is_file():
            try:
                there = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                raise UsageError(f"{file} is damaged; choose another --out") from None
            for key in [key for key in {**wanted, **there} if wanted.get(key) != there.get(key)][:1]:
                raise UsageError(
                    f"--out {self.path} holds a run with another {key} ({there.get(key)}, now {wanted.get(key)});"
                    " ask for the same to go on with it, or choose another --out"
                )
        else:
            write_json(file, wanted)
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()

    def finish(self, metrics: Mapping[str, Any]) -> None:
        write_json(self.metrics, metrics)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name under which to write a file or a folder, which is called ``path`` once all is written."""
    part = path.with_name(f".{path.name}.part")
    if part.is_dir():  # of a run that was killed while it wrote
        shutil.rmtree(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    yield part
    part.replace(path)


def write_json(file: Path, content: Any) -> None:
    with whole(file) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def digest_of(content: Any) -> str:
    """For ``claim``: a corpus by its digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
