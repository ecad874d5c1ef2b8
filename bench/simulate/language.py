"""Language models of any size on the meta device, from their configuration alone."""

from __future__ import annotations

from typing import Any

import torch

from bench.models import configuration
from bench.nets import default_dtype
from conformance.discovery import UsageError
from conformance.models import checkpoint_activations

_ATTENTION_DROPOUT = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop")


def language_model(name: str, dtype: str, seq: int, *, checkpointing: bool) -> Any:
    """A causal model with its head, or a masked one, in training mode and without memory.

    Attention goes through ``scaled_dot_product_attention`` without dropout, for which torch dispatches one fused kernel
    on a CPU as on a GPU: what it saves is q, k, v, the output and a logsumexp, never seq x seq. There is no cache of
    keys and values, as in transformers' Trainer. Checkpointing is transformers' own, one block per layer, not
    reentrant.

    Raises:
        UsageError: unknown model, no language model, fewer positions than ``seq``, no fused attention or checkpointing.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    config = configuration(name)
    for key in _ATTENTION_DROPOUT:
        if hasattr(config, key):
            setattr(config, key, 0.0)
    config.use_cache = False
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:  # first: encoders stand in the other list too
        make: Any = AutoModelForMaskedLM
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        make = AutoModelForCausalLM
    else:
        raise UsageError(f"{name}: a {config.model_type} is no causal or masked language model")
    positions = getattr(config, "max_position_embeddings", seq)
    if seq > positions:
        raise UsageError(f"{name} has {positions} positions: --seq {seq} is too long")
    try:
        with default_dtype(getattr(torch, dtype)), torch.device("meta"):
            model = make.from_config(config, attn_implementation="sdpa").train()
        if checkpointing:
            checkpoint_activations(model, reentrant=False)
    except ValueError as error:
        raise UsageError(f"{name}: {' '.join(str(error).split())[:200]}") from None
    return model
