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


class Poisoned:
    """Arrays inside larger buffers of NaN, with a gap after each row."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Array, Array]] = []

    def place(self, array: Array | None) -> Array | None:
        """The same values, read-only; a broadcast array stays one row that is repeated."""
        if array is None:
            return None
        core = array[:1] if array.ndim and array.shape[0] > 1 and not array.strides[0] else array
        buffer = np.full((core.shape[0] + 2, *core.shape[1:-1], core.shape[-1] + 5) if core.ndim > 1 else
                         (core.size + 5,), np.nan, core.dtype)  # fmt: skip
        inside = buffer[1:-1, ..., 2:-3] if core.ndim > 1 else buffer[2:-3]
        inside[...] = core
        self.buffers.append((buffer, buffer.copy()))
        view = np.broadcast_to(inside.reshape(core.shape), array.shape)
        view.flags.writeable = False
        return view

    def unchanged(self) -> bool:
        return all(now.tobytes() == before.tobytes() for now, before in self.buffers)
