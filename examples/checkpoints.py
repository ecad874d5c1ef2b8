"""Checkpoints of a training loop: adapter, head and optimiser, each whole or not there. The two newest are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from adapters import TaskAdapters
from run_folder import whole, write_json
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from conformance.discovery import UsageError

ADAPTER, TENSORS, STATE = "adapter", "training.safetensors", "training.json"
_KEPT = 2


class Checkpoints:
    """Those of one task in one run, whose digest each of them carries."""

    def __init__(self, folder: Path, run: str, adapted: TaskAdapters, task: str) -> None:
        self.folder, self.run, self.adapted, self.task = folder, run, adapted, task

    def save(self, history: list[dict[str, float]], head: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """After the epoch that ``history`` ends with."""
        tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
        for nth, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{nth}.{name}": value for name, value in state.items()}
        with whole(self.folder / f"epoch-{len(history)}") as part:
            self.adapted.save(self.task, part / ADAPTER)
            save_file({name: value.contiguous() for name, value in tensors.items()}, part / TENSORS)
            write_json(part / STATE, {"run": self.run, "history": history})
        for old in self._all()[:-_KEPT]:
            shutil.rmtree(old)

    def restore(self, head: nn.Module, optimiser: torch.optim.Optimizer) -> list[dict[str, float]]:
        """The newest one's values in place of the present ones; its history, or an empty one where there is none.

        Raises:
            UsageError: it is damaged, or belongs to another run.
        """
        if not (found := self._all()):
            return []
        newest = found[-1]
        try:
            state: dict[str, Any] = json.loads((newest / STATE).read_text(encoding="utf-8"))
            tensors = load_file(newest / TENSORS)
        except (OSError, ValueError, SafetensorError):
            raise UsageError(f"checkpoint {newest} is damaged: remove it to go on from the one before") from None
        if state["run"] != self.run:
            raise UsageError(f"checkpoint {newest} is of another model or another run: choose another --out")
        self.adapted.restore(self.task, newest / ADAPTER)
        head.load_state_dict({name: tensors[f"head.{name}"] for name in head.state_dict()})
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key in (key for key in tensors if key.startswith("optimiser.")):
            _, nth, name = key.split(".")
            moments.setdefault(int(nth), {})[name] = tensors[key]
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        history: list[dict[str, float]] = state["history"]
        return history

    def _all(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("epoch-*"), key=lambda path: int(path.name.partition("-")[2]))
