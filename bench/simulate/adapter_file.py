"""The size of an adapter's file in PEFT's layout, without writing it."""

from __future__ import annotations

import json

from conformance.contract import ModelHandle

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_ALIGNED = 8


def file_bytes(handle: ModelHandle) -> int:
    """Bytes of ``adapter_model.safetensors``: the length, the header in JSON, and the factors of every site.

    Format: https://github.com/huggingface/safetensors#format. ``adapter_config.json``, about 1 kB, is not counted.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, entries = 0, []
    for path in handle.sites():
        for letter, factor in zip("AB", handle.factors(path), strict=True):
            entries.append((f"base_model.model.{path}.lora_{letter}.weight", factor))
    for name, factor in sorted(entries, key=lambda entry: entry[0]):
        start, end = end, end + factor.numel() * factor.element_size()
        dtype = _NAMES[str(factor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(factor.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // _ALIGNED) * _ALIGNED + end
