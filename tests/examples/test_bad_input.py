"""What cannot work is refused: one clear line, exit status 2, and nothing is written over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from adapters import spec_for
from programs import PROGRAMS, call, digests
from torch import nn
from transformers import BertConfig, BertModel

from conformance.discovery import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers and torch warn of is theirs

HOWS = ("good", "bad", "old", "new", "raw")
ROWS = "".join(f"{label}\tthe {label} is {how}\n" for label in ("soup", "song") for how in HOWS)


def refused(program: str, out: Path, *options: object) -> str:
    """The one line that it says."""
    before = digests(out) if out.is_dir() else {}
    result = call(program, out, *options)
    assert result.exit_code == 2, result.output
    (line,) = result.output.strip().splitlines()
    assert line.startswith(f"{program}: ")
    assert (digests(out) if out.is_dir() else {}) == before
    return line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe\x00\x01", "not text in UTF-8"),
        (b"PK\x03\x04\x00\x00", "zero bytes"),
        (b"one\ttwo\n", "too small"),
        (None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_corpus(program: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    if content is not None:
        corpus.write_bytes(content)
    line = refused(program, tmp_path / "out", "--tiny", "--corpus", corpus)
    assert words in line
    assert "corpus" in line


def test_corpus_without_labels(tmp_path: Path) -> None:
    (tmp_path / "talks.tsv").write_text(ROWS + "no label here\n")
    assert "line 11" in refused("finetune_bert", tmp_path / "out", "--tiny", "--corpus", tmp_path / "talks.tsv")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "nowhere_proj"), "'nowhere_proj' matches no module"),
        (("--backend", "nobody"), "unknown backend 'nobody'"),
        (("--backend", "numpy"), "no Model facet"),
        (("--alpha", "-1"), "alpha must be finite and positive"),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS)
def test_options(program: str, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    assert words in refused(program, tmp_path / "out", "--tiny", *options)


def test_unknown_model(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(ROWS)
    (tmp_path / "empty").mkdir()
    corpus = ("--corpus", tmp_path / "rows.tsv")
    assert "does not exist" in refused("finetune_bert", tmp_path / "out", *corpus, "--model", tmp_path / "none")
    assert "cannot load" in refused("finetune_bert", tmp_path / "out", *corpus, "--model", tmp_path / "empty")


def test_model_of_no_known_family() -> None:
    with pytest.raises(UsageError, match="give --target; there are: 0, 1"):
        spec_for(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 4, 8.0, [])


@pytest.mark.parametrize("program", PROGRAMS)
def test_folder_of_something_else(program: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    assert "is not empty" in refused(program, tmp_path, "--tiny")


@pytest.fixture
def saved_bert(tmp_path: Path):  # noqa: ANN201
    """A tiny BERT and its tokenizer in a folder, as any model of yours; given again, with other weights."""
    import torch
    from pretrained import load

    _, tokenizer = load("tiny-bert", ROWS.split("\n"), causal=False)

    def save(seed: int) -> Path:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        BertModel(BertConfig(vocab_size=97, max_position_embeddings=16, **sizes)).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def test_run_of_another_model(saved_bert, tmp_path: Path) -> None:  # noqa: ANN001
    """The same path now holds other weights: the adapters of the run belong to the old ones."""
    (tmp_path / "rows.tsv").write_text(ROWS)
    options = ("--corpus", tmp_path / "rows.tsv", "--model", saved_bert(seed=0), "--epochs", 1)
    result = call("finetune_bert", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    (tmp_path / "out" / "metrics.json").unlink()  # as if it had been cut off
    saved_bert(seed=1)
    assert "another model weights" in refused("finetune_bert", tmp_path / "out", *options)


@pytest.mark.parametrize("program", PROGRAMS)
def test_checkpoint_of_another_run(program: str, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    for folder, options in ((out, ()), (other, ("--r", 4))):
        result = call(program, folder, "--tiny", "--epochs", 1, *options)
        assert result.exit_code == 0, result.output
    (out / "metrics.json").unlink()
    assert "another r" in refused(program, out, "--tiny", "--epochs", 1, "--r", 4)
    task = next(iter(json.loads((other / "metrics.json").read_text())["tasks"]))
    shutil.rmtree(out / task / "checkpoints")
    shutil.copytree(other / task / "checkpoints", out / task / "checkpoints")
    before = digests(out)
    result = call(program, out, "--tiny", "--epochs", 1)
    assert result.exit_code == 2
    assert "another model or another run" in result.output.splitlines()[-1]
    assert digests(out) == before


def test_damaged_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("finetune_bert", out, "--tiny", "--epochs", 2).exit_code == 0
    (out / "metrics.json").unlink()
    file = out / "topics" / "checkpoints" / "epoch-2" / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    result = call("finetune_bert", out, "--tiny", "--epochs", 2)
    assert result.exit_code == 2
    assert "is damaged" in result.output.splitlines()[-1]
