"""Fine-tune a Llama with LoRA under transformers' Trainer: one frozen model, an adapter for each corpus.

    python examples/finetune_llama.py --out runs/llama                    # SmolLM2-135M on dialogues
    python examples/finetune_llama.py --out runs/hooked --backend hooks   # the same by forward hooks
    python examples/finetune_llama.py --out runs/tiny --tiny              # a tiny random model, in seconds
    python examples/finetune_llama.py --out runs/mine --model meta-llama/Llama-2-7b-hf --corpus talks.txt

Adapters sit on query, key, value and the feed-forward layers; with grouped queries, key and value have fewer outputs
than inputs, and B follows. ``--backend reference`` puts a layer in the place of each target, with the target inside
(injection); ``hooks`` leaves every module where it is and adds the delta to its output. The Trainer's arguments are
what tutorials give: 3 epochs, batches of 4, 8 of them accumulated, learning rate 1e-4, mixed precision where the device
has it, a line every 10 steps, two checkpoints kept.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pretrained
import torch
import typer
from adapter_trainer import ADAPTER, AdapterTrainer
from adapters import TaskAdapters, backend_named, spec_for
from corpora import Dialogues, dialogues
from display import CONSOLE, summary, table
from run_folder import RunFolder, digest_of
from transformers import TrainingArguments

from conformance.command_line import application, told
from conformance.discovery import UsageError
from reports.escape import plain

app = application()


@dataclass(frozen=True)
class Asked:
    out: Path
    tiny: bool
    model: str
    backend: str
    corpus: list[Path]
    target: list[str]
    r: int
    alpha: float
    lr: float
    epochs: int
    batch: int
    accumulate: int
    blocks: int
    length: int
    every: int
    seed: int


def finetune(asked: Asked) -> int:
    """The exit status."""
    folder, backend = RunFolder(asked.out), backend_named(asked.backend)
    tasks = dialogues(asked.corpus, asked.seed, made_up=asked.tiny)
    texts = [talk for task in tasks for talk in task.train]
    model, tokenizer = pretrained.load("tiny-llama" if asked.tiny else asked.model, texts, causal=True)
    spec = spec_for(model, asked.r, asked.alpha, asked.target)
    data = [Blocks(task, tokenizer, asked, model.config.max_position_embeddings) for task in tasks]
    adapted = TaskAdapters(backend, model, spec, [task.name for task in tasks], asked.seed)
    base, settings = adapted.base(), {name: value for name, value in asdict(asked).items() if name != "out"}
    settings |= {"corpus": {task.name: digest_of(asdict(task)) for task in tasks}, "model weights": base[:16]}
    run = folder.claim({"program": "finetune_llama", **settings})
    if folder.finished:
        CONSOLE.print(f"{asked.out} holds this run, and it is finished: see {folder.metrics}")
        return 0
    trainers = {each.name: trainer_for(asked, adapted, each, run) for each in data}
    by = {"none": held_out_losses(trainers, "no adapter")}  # with B still zero
    before = {each.name: sample(adapted, each) for each in data}
    for each in data:
        train(adapted, trainers[each.name], asked.out / each.name / ADAPTER)
        by[each.name] = held_out_losses(trainers, f"adapter {each.name}")
    after = {}
    for each in data:
        adapted.activate(each.name)  # what was trained first answers as it did then
        after[each.name] = sample(adapted, each)
    metrics = {
        "settings": settings,
        "precision": precision(),
        "tasks": {
            each.name: {
                "blocks": {"train": len(each.train), "held out": len(each.held_out)},
                "history": [line for line in trainers[each.name].state.log_history if "loss" in line],
                "sample": {"prompt": each.prompt, "before": before[each.name], "after": after[each.name]},
            }
            for each in data
        },
        "held-out loss by adapter": by,
        "adapter": adapted.figures(data[0].name, asked.out / data[0].name / ADAPTER),
        "base unchanged": adapted.base() == base,
    }
    folder.finish(metrics)
    show(metrics, folder.metrics)
    return 0 if metrics["base unchanged"] else 1


class Blocks:
    """A task's conversations one after the other, cut into pieces of equally many tokens."""

    def __init__(self, task: Dialogues, tokenizer: Any, asked: Asked, longest: int) -> None:
        self.name, self.tokenizer, self.length = task.name, tokenizer, min(asked.length, longest)
        self.train = self._cut(task.train, asked.blocks, asked.seed)
        self.held_out = self._cut(task.held_out, max(asked.batch, asked.blocks // 8), asked.seed)
        openings = [talk.partition("\n")[0] for talk in task.held_out]
        self.prompt = f"{max(openings[:16], key=len)}\nB:"  # of the first few the one that says most

    def _cut(self, talks: Sequence[str], most: int, seed: int) -> list[dict[str, torch.Tensor]]:
        order, ids = [*talks], list[int]()
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret
        for talk in order:
            if len(ids) >= most * self.length:
                break
            ids += [*self.tokenizer(talk)["input_ids"], self.tokenizer.eos_token_id]
        count = min(most, len(ids) // self.length)
        if not count:
            raise UsageError(
                f"corpus {self.name!r} is too small: it needs {self.length} tokens on each side of the split"
            )
        pieces = torch.tensor(ids[: count * self.length]).view(count, self.length)
        return [{"input_ids": piece, "labels": piece} for piece in pieces]


def precision() -> str:
    """What products are computed in: mixed precision where the device has it."""
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def trainer_for(asked: Asked, adapted: TaskAdapters, data: Blocks, run: str) -> AdapterTrainer:
    arguments = TrainingArguments(
        output_dir=str(asked.out / data.name / "checkpoints"),
        num_train_epochs=asked.epochs,
        per_device_train_batch_size=asked.batch,
        per_device_eval_batch_size=asked.batch,
        gradient_accumulation_steps=asked.accumulate,
        learning_rate=asked.lr,
        bf16=precision() == "bfloat16",
        fp16=precision() == "float16",
        logging_steps=asked.every,
        save_steps=asked.every,
        save_total_limit=2,
        seed=asked.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return AdapterTrainer(adapted, data.name, run, arguments, train_dataset=data.train, eval_dataset=data.held_out)


def train(adapted: TaskAdapters, trainer: AdapterTrainer, adapter: Path) -> None:
    trainer.go_on()
    if not adapter.exists():
        adapted.save(trainer.task, adapter)


def held_out_losses(trainers: dict[str, AdapterTrainer], applied: str) -> dict[str, float]:
    """Nats per token of each corpus, with the adapter that is active."""
    losses = {}
    for name, trainer in trainers.items():
        losses[name] = float(trainer.evaluate()["eval_loss"])
        CONSOLE.print(f"{name}: held-out loss {losses[name]:.3f} with {applied}")
    return losses


def sample(adapted: TaskAdapters, data: Blocks) -> str:
    """The most likely answer to a held-out conversation's first turn."""
    model, tokenizer, half = adapted.module.eval(), data.tokenizer, data.length // 2
    prompt = tokenizer(data.prompt, return_tensors="pt")["input_ids"][:, -half:].to(model.device)  # (1, length)
    ids = model.generate(input_ids=prompt, max_new_tokens=half, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    text: str = tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
    return text


def show(metrics: dict[str, Any], file: Path) -> None:
    by = metrics["held-out loss by adapter"]
    rows = {name: [*losses.values()] for name, losses in by.items()}
    CONSOLE.print(table("held-out loss, with each adapter on the same model", "adapter", by["none"], rows))
    for name, task in metrics["tasks"].items():
        said = task["sample"]
        for when in ("before", "after"):
            CONSOLE.print(plain(f"{name}, {when} training:\n{said['prompt']}{said[when]}\n"))
    CONSOLE.print(summary(metrics, file))


@app.command()
def main(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="New folder, or that of a run to go on with.")
    ],
    *,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A tiny random model and a made-up corpus; ends in seconds.")
    ] = False,
    model: Annotated[str, typer.Option(metavar="NAME", help="smollm2, or any transformers id or path.")] = "smollm2",
    backend: Annotated[
        str,
        typer.Option(
            "--backend", "-b", metavar="NAME", help="reference, hooks, fused, peft, or package.module:object."
        ),
    ] = "reference",
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Turns on lines, an empty line between conversations. Repeatable."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="SUFFIX", help="Modules to adapt. Default: query, key, value, feed-forward. Repeatable."),
    ] = None,
    r: Annotated[int, typer.Option("--r", min=1, help="Rank.")] = 16,
    alpha: Annotated[float, typer.Option(help="s = alpha/r.")] = 32.0,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate of AdamW, falling to zero.")] = 1e-4,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Blocks in one pass.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes in one optimiser step.")] = 8,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of text trained on, an eighth as many held out.")] = 256,
    length: Annotated[int, typer.Option(min=4, help="Tokens in a block.")] = 64,
    every: Annotated[int, typer.Option(min=1, help="Steps between lines, and between checkpoints.")] = 10,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split, A and the order.")] = 0,
) -> None:
    """Fine-tune a Llama with LoRA on one or more corpora of dialogue; each gets an adapter.

    \b
    Writes DIR/metrics.json and for each task DIR/TASK/adapter (PEFT's layout) and checkpoints. The
    same command goes on where it was cut off.
    Exit status: 0 done, 1 the base did not stay as it was, 2 bad usage.
    """  # noqa: D301 - typer wraps no paragraph that begins so
    asked = Asked(
        out, tiny, model, backend, corpus or [], target or [], r, alpha, lr, epochs, batch, accumulate, blocks, length,
        every, seed,
    )  # fmt: skip
    raise typer.Exit(told("finetune_llama", lambda: finetune(asked)))


if __name__ == "__main__":
    app()
