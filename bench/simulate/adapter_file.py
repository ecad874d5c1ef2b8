"""The size of an adapter's file in PEFT's layout, without writing it."""

from __future__ import annotations

import json
from collections.abc import Mapping

_NAMES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
_ALIGNED = 8


def file_bytes(weights: Mapping[str, tuple[int, int]], r: int, dtype: str) -> int:
    """Bytes of ``adapter_model.safetensors`` for adapters of rank r on these weights, (out, in) by path.

    The length of the header, the header in JSON, then A (r, in) and B (out, r) of every path; the format is that of
    https://github.com/huggingface/safetensors#format. ``adapter_config.json``, about 1 kB, is not counted.
    """
    name, itemsize = _NAMES[dtype]
    shapes = {f"base_model.model.{path}.lora_A.weight": [r, in_] for path, (_, in_) in weights.items()}
    shapes |= {f"base_model.model.{path}.lora_B.weight": [out, r] for path, (out, _) in weights.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, (rows, columns) in sorted(shapes.items()):
        start, end = end, end + rows * columns * itemsize
        header[key] = {"dtype": name, "shape": [rows, columns], "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // _ALIGNED) * _ALIGNED + end
