"""Whole models: tiny and pretrained ones with weights for real runs, and configurations alone for simulation."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from conformance.command_line import hint
from conformance.discovery import UsageError

_TYPO = 0.9  # so like a built-in name that no hub is asked, which takes half a minute where there is none
_BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LLAMA_2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", {"vocab_size": 30522, **_BERT}),
    "llama-2-7b": (
        "llama",
        {**_LLAMA_2, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 32, "intermediate_size": 11008},
    ),
    "llama-3-8b": (
        "llama",
        {"vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192},
    ),
    "qwen2.5-7b": (
        "qwen2",
        {"vocab_size": 152064, "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "intermediate_size": 18944, "max_position_embeddings": 32768},
    ),
    "llama-2-70b": (
        "llama",
        {**_LLAMA_2, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
        | {"num_key_value_heads": 8, "intermediate_size": 28672},
    ),
    "llama-3.2-3b": (
        "llama",
        {"vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24}
        | {"num_key_value_heads": 8, "intermediate_size": 8192, "head_dim": 128, "tie_word_embeddings": True},
    ),
}
TARGETS = {
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def load(name: str, dtype: str) -> Any:
    """A model with weights that may be changed: "tiny-bert", "tiny-llama", "minilm", a path or a transformers id."""
    from conformance.models import check_model
    from conformance.models import load as load_weights

    check_model(name)
    return load_weights(name, dtype).fresh()


def configuration(name: str) -> Any:
    """A transformers configuration, without weights: a built-in name, a path, a config.json or an id.

    Raises:
        UsageError: none of these; the nearest built-in name is shown.
    """
    from transformers import AutoConfig

    if name in CONFIGURATIONS:
        kind, values = CONFIGURATIONS[name]
        return AutoConfig.for_model(kind, **values)
    if typo := difflib.get_close_matches(name, CONFIGURATIONS, n=1, cutoff=_TYPO):
        raise UsageError(f"unknown model {name!r}: did you mean {typo[0]!r}?")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if Path(name).exists():
            raise UsageError(f"{name}: no transformers configuration ({' '.join(str(error).split())[:100]})") from None
    near = hint(name, CONFIGURATIONS, f"built in are {', '.join(CONFIGURATIONS)}")
    raise UsageError(f"model {name!r} is no path, and transformers cannot fetch it: {near}")


def targets_of(module: Any) -> tuple[str, ...]:
    """The attention and feed-forward projections of the model's family: those of ``TARGETS`` that it has.

    Raises:
        UsageError: the model has none of them.
    """
    from lora_ref.targets import matches

    paths = [path for path, _ in module.named_modules()]
    for names in TARGETS.values():
        found = tuple(name for name in names if any(matches(name, path) for path in paths))
        if found:
            return found
    raise UsageError(f"no attention or feed-forward projections known in a {type(module).__name__}: name targets")
