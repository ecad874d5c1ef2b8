"""The same values in other memory layouts: what slicing, transposing and broadcasting leave behind."""

from __future__ import annotations

import numpy as np

from conformance.contract import Array


def arrange(values: Array, layout: str) -> Array:
    """A read-only array of the shape of ``values``, laid out as named.

    "transposed": the axes lie in reverse order in memory. "strided": every second element of a larger buffer.
    "offset": the last axis is a window of a longer one. "expanded": the first axis is broadcast (stride 0), so its
    rows all equal the first. Arrays without axes stay as they are.
    """
    if not values.ndim or layout == "contiguous":
        out = np.ascontiguousarray(values) if values.ndim else values.copy()
    elif layout == "transposed":
        out = np.ascontiguousarray(values.T).T
    elif layout == "strided":
        buffer = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
        out = buffer[..., ::2]
        out[...] = values
    elif layout == "offset":
        buffer = np.zeros((*values.shape[:-1], values.shape[-1] + 2), values.dtype)
        out = buffer[..., 1:-1]
        out[...] = values
    elif layout == "expanded":
        out = np.broadcast_to(values[:1], values.shape) if values.shape[0] else values
    else:
        raise ValueError(f"unknown layout {layout!r}")
    out.flags.writeable = False
    return out
