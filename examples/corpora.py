"""What the programs train on: texts that pip brings, files of yours, or a made-up corpus that needs nothing.

A quarter of every corpus is held out, chosen by the seed. Conversations that begin alike stay on one side, and a
sentence that was trained on is never held out, so that nobody is rewarded for remembering.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.discovery import UsageError

CHATTERBOT = ("chatterbot_corpus", "pip install --no-deps chatterbot-corpus==1.3.3")
CHITCHAT = ("chitchat_dataset", "pip install --no-deps chitchat-dataset==0.9.0")
_HELD_OUT = 4  # one in so many

Example = tuple[str, int]  # a sentence, and which of the labels it has


@dataclass(frozen=True)
class Labelled:
    """Sentences to classify."""

    name: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def majority(self) -> float:
        """The held-out accuracy of always guessing the label that is most frequent in training."""
        counts = [sum(label == nth for _, label in self.train) for nth in range(len(self.labels))]
        return sum(label == counts.index(max(counts)) for _, label in self.held_out) / len(self.held_out)


@dataclass(frozen=True)
class Dialogues:
    """Conversations to go on with: a line for each turn, by A and B in turns."""

    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def labelled(files: Sequence[Path], seed: int, *, made_up: bool) -> list[Labelled]:
    """Each of ``files`` as a task; without any, the 21 topics of chatterbot-corpus, and who speaks: two tasks.

    A file has a label, a tab and a sentence on each line.

    Raises:
        UsageError: a corpus that is not there, not text, or too small to learn from.
    """
    if files:
        return [_split(name, _rows(path), seed) for name, path in _named(files)]
    talks = _made_up() if made_up else _chatterbot()
    topics = [(topic, talk[0], sentence) for topic, talk in talks for sentence in talk]
    turns = [("reply" if nth else "opener", talk[0], talk[nth]) for _, talk in talks for nth in range(len(talk))]
    return [_split("topics", topics, seed), _split("turns", turns, seed)]


def dialogues(files: Sequence[Path], seed: int, *, made_up: bool) -> list[Dialogues]:
    """Each of ``files`` as a task; without any, the chit-chat of people, and the answers of chatterbot-corpus.

    A file has a turn on each line, and an empty line between conversations.

    Raises:
        UsageError: a corpus that is not there, not text, or too small to learn from.
    """
    if files:
        return [_talks(name, _conversations(path), seed) for name, path in _named(files)]
    answers = [talk for _, talk in (_made_up() if made_up else _chatterbot())]
    chat = [talk[::-1] for talk in answers] if made_up else _chitchat()
    return [_talks("chat", chat, seed), _talks("answers", answers, seed)]


def _split(name: str, rows: Iterable[tuple[str, str, str]], seed: int) -> Labelled:
    """From (label, what it was part of, sentence); sentences that have several labels are left out."""
    found: dict[str, tuple[set[str], str]] = {}
    for label, part, sentence in rows:
        found.setdefault(sentence, (set(), part))[0].add(label)
    plain = [(*labels, part, sentence) for sentence, (labels, part) in found.items() if len(labels) == 1]
    kinds = sorted({label for label, *_ in plain})
    kept = _kept((part for _, part, _ in plain), seed)
    train = tuple((sentence, kinds.index(label)) for label, part, sentence in plain if part not in kept)
    held_out = tuple((sentence, kinds.index(label)) for label, part, sentence in plain if part in kept)
    if len(kinds) < 2 or len({nth for _, nth in train}) < 2 or not held_out:
        raise UsageError(f"corpus {name!r} is too small: it needs two labels, and sentences to hold out of both")
    return Labelled(name, tuple(kinds), train, held_out)


def _talks(name: str, talks: Iterable[Sequence[str]], seed: int) -> Dialogues:
    """One conversation for each opening, so that nothing comes twice."""
    first = {talk[0]: talk for talk in reversed([*talks])}
    kept = _kept(first, seed)
    text = {opening: "\n".join(f"{who}: {turn}" for who, turn in zip(itertools.cycle("AB"), talk, strict=False))
            for opening, talk in sorted(first.items())}  # fmt: skip
    train = tuple(talk for opening, talk in text.items() if opening not in kept)
    return Dialogues(name, train, tuple(talk for opening, talk in text.items() if opening in kept))


def _kept(parts: Iterable[str], seed: int) -> set[str]:
    """The parts that are held out."""
    every = sorted(set(parts))
    random.Random(seed).shuffle(every)  # noqa: S311 - no secret
    return set(every[: len(every) // _HELD_OUT])


def _named(files: Sequence[Path]) -> list[tuple[str, Path]]:
    named = {path.stem: path for path in files}
    if len(named) < len(files):
        raise UsageError(f"two corpora are called {', '.join(path.stem for path in files)}: each names a task")
    return [*named.items()]


def _rows(path: Path) -> list[tuple[str, str, str]]:
    rows = []
    for nth, line in enumerate(_read(path).splitlines(), start=1):
        label, tab, sentence = (part.strip() for part in line.partition("\t"))
        if line.strip() and not (label and sentence):
            raise UsageError(f"corpus {path}, line {nth}: a label, a tab and a sentence are wanted")
        if tab or sentence:
            rows.append((label, sentence, sentence))
    return rows


def _conversations(path: Path) -> list[list[str]]:
    parts = _read(path).replace("\r\n", "\n").split("\n\n")
    talks = [[line.strip() for line in part.splitlines() if line.strip()] for part in parts]
    return [talk for talk in talks if talk]


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"corpus {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"corpus {path} is not text in UTF-8") from None
    if "\0" in text:
        raise UsageError(f"corpus {path} is not text: it holds zero bytes")
    if not text.strip():
        raise UsageError(f"corpus {path} is empty")
    return text


def _chatterbot() -> list[tuple[str, list[str]]]:
    """(topic, conversation), in English."""
    import yaml  # type: ignore[import-untyped]

    found = []
    for file in sorted((_package(*CHATTERBOT) / "data" / "english").glob("*.yml")):
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        found += [(file.stem, [turn.strip() for turn in talk]) for talk in content["conversations"]]
    return found


def _chitchat() -> list[list[str]]:
    """What one says before the other answers is one turn."""
    talks = json.loads((_package(*CHITCHAT) / "dataset.json").read_text(encoding="utf-8"))
    turns = ([" ".join(part["text"].strip() for part in turn) for turn in talk["messages"]] for talk in talks.values())
    return [talk for talk in ([turn for turn in talk if turn] for talk in turns) if len(talk) > 1]


def _package(name: str, command: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"the default corpus is not installed: {command} (or give --corpus FILE, or --tiny)")
    return Path(found.submodule_search_locations[0])


def _made_up() -> list[tuple[str, list[str]]]:
    """(topic, a question and its answer), of some sixty different words."""
    topics = {
        "weather": (("rain", "snow", "wind", "fog"), ("come", "stop", "turn", "stay")),
        "kitchen": (("soup", "bread", "rice", "tea"), ("boil", "cool", "burn", "smell")),
        "music": (("drum", "flute", "choir", "song"), ("sound", "begin", "end", "rest")),
    }
    whens = ("today", "soon", "again", "later")
    return [
        (topic, [f"will the {thing} {act} {when}", f"yes the {thing} must {act} {when}"])
        for topic, (things, acts) in topics.items()
        for thing, act, when in itertools.product(things, acts, whens)
    ]
