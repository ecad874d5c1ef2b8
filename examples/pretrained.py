"""The models that adapters are put on, each with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from conformance import models
from conformance.discovery import UsageError


def load(name: str, texts: Iterable[str], *, causal: bool) -> tuple[Any, Any]:
    """A model in float32, with or without its language-modelling head, and its tokenizer.

    ``name`` is a built-in one (see ``conformance.models``), a path or a hub id; ``texts`` gives a tiny model its words.

    Raises:
        UsageError: no such model, or one that transformers cannot load.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    models.check_model(name)
    if name in models.DEFAULT_MODELS:
        tiny = models.load(name, "float32")
        return tiny.fresh(), _words(texts, tiny.vocabulary)
    source, located = models.located(name)
    keywords: dict[str, Any] = {**located}
    make = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **keywords)
        if "gguf_file" in keywords:
            keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)  # A and B go on plain weights
        module = make.from_pretrained(source, dtype=torch.float32, **keywords)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"transformers cannot load model {name!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return module.eval(), tokenizer


def _words(texts: Iterable[str], size: int) -> Any:
    """A token for each of the most frequent words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.trainers import WordLevelTrainer
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    words = Tokenizer(WordLevel(unk_token=names["unk_token"]))
    words.pre_tokenizer = Whitespace()
    words.train_from_iterator(
        texts, WordLevelTrainer(vocab_size=size, special_tokens=[*names.values()], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)
