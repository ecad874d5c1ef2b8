"""A block-wise quantiser of a few lines: each block of a row is stored as whole numbers and one scale.

W (out, in) is cut into blocks of consecutive inputs. A block's scale is its largest absolute value over the largest
integer, q = round(W / scale), and W_q = q · scale is what the layer computes with ("absmax" quantisation: Dettmers et
al., 2022, arXiv:2110.02861, section 2). Half a step, scale / 2, is the most that W_q differs from W, up to rounding.
Four-bit numbers are stored in pairs, so that the stored shape says nothing about W's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 4


@dataclass(frozen=True)
class Packed:
    """``stored``: int8 (out, n) for eight bits, uint8 (out · n / 2, 1) for four; ``scales``: float32 (out, n / BLOCK).

    n is ``inputs`` rounded up to whole blocks.
    """

    stored: NDArray[Any]
    scales: NDArray[np.float32]
    inputs: int
    bits: int


def largest(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def quantise(w: NDArray[Any], bits: int) -> Packed:
    """W (out, in) in 4 or 8 bits.

    Raises:
        ValueError: another number of bits.
    """
    if bits not in {4, 8}:
        raise ValueError(f"4 or 8 bits, not {bits}")
    out, inputs = w.shape
    padded = np.zeros((out, -(-inputs // BLOCK) * BLOCK), dtype=np.float32)
    padded[:, :inputs] = w
    blocks = padded.reshape(out, -1, BLOCK)
    scales = np.abs(blocks).max(axis=2) / np.float32(largest(bits))  # (out, n / BLOCK)
    whole = np.divide(blocks, scales[..., None], out=np.zeros_like(blocks), where=scales[..., None] > 0)
    q = np.rint(whole).astype(np.int8).reshape(out, -1)
    if bits == 8:
        return Packed(q, scales, inputs, bits)
    nibbles = (q + 8).astype(np.uint8).reshape(-1, 2)
    return Packed((nibbles[:, :1] << 4) | nibbles[:, 1:], scales, inputs, bits)


def dequantise(packed: Packed) -> NDArray[np.float32]:
    """W_q (out, in): q · scale, rounded once to float32."""
    q, scales = packed.stored, packed.scales
    if packed.bits == 4:
        q = np.concatenate([q >> 4, q & 15], axis=1).astype(np.int8) - 8
    numbers = q.astype(np.float32).reshape(*scales.shape, BLOCK) * scales[..., None]
    return numbers.reshape(len(scales), -1)[:, : packed.inputs]
