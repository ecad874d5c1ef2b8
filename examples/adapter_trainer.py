"""transformers' Trainer for adapters: its checkpoints hold the adapter that is trained, not the whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from adapters import TaskAdapters
from display import CONSOLE, bar
from run_folder import RUN, write_json
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from conformance.discovery import UsageError

ADAPTER, STATE = "adapter", "trainer_state.json"  # the Trainer writes the latter last


class AdapterTrainer(Trainer):  # type: ignore[misc]
    """For one task. What else the Trainer keeps (moments, schedule, random state) it reads without running code."""

    def __init__(self, adapted: TaskAdapters, task: str, run: str, arguments: TrainingArguments, **data: Any) -> None:
        super().__init__(adapted.module, arguments, **data)
        self.adapted, self.task, self.run = adapted, task, run
        self.remove_callback(PrinterCallback)
        self.add_callback(Shown(task))

    def go_on(self) -> None:
        """Train, from the newest checkpoint on if there is one.

        Raises:
            UsageError: it belongs to another run, or is damaged.
        """
        self.adapted.activate(self.task)
        newest = self._newest()
        if newest:
            CONSOLE.print(f"{self.task}: goes on from {newest.name}")
        self.train(resume_from_checkpoint=str(newest) if newest else None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002
        folder = Path(output_dir or self.args.output_dir)
        self.adapted.save(self.task, folder / ADAPTER)
        write_json(folder / RUN, self.run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        self.adapted.restore(self.task, Path(resume_from_checkpoint) / ADAPTER)

    def _newest(self) -> Path | None:
        """The last one that was written to its end; what a killed run left half-written is removed."""
        found = Path(self.args.output_dir).glob("checkpoint-*")
        for folder in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
            try:
                json.loads((folder / STATE).read_text(encoding="utf-8"))
                run = json.loads((folder / RUN).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                shutil.rmtree(folder)
                continue
            if run != self.run:
                raise UsageError(f"checkpoint {folder} is of another model or another run: choose another --out")
            return folder
        return None


class Shown(TrainerCallback):  # type: ignore[misc]
    """The Trainer's progress as a bar, and its log as lines."""

    def __init__(self, task: str) -> None:
        self.task, self.bar = task, bar()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.bar.start()
        self.line = self.bar.add_task(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.bar.update(self.line, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:  # noqa: ARG002
        if "loss" in logs:
            CONSOLE.print(f"{self.task}: step {state.global_step} of {state.max_steps}, loss {logs['loss']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.bar.stop()
