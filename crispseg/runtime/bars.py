"""Letterbox bars: what the base says about them is made certain, so that no bar pixel takes a place of the refiner's.

A bar is a flat colour that the base has never seen, often uncertain; without this it would fill the capacity with
pixels that are cut off again. Only logits that no pixel of the frame reads are changed: the labels of the frame stay
what they were, unless bars had taken capacity from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, List, Tuple

import numpy as np

from crispseg.runtime.geometry import Placement

_CERTAIN = -30.0  # of every class but the first, whose logit is 0: an entropy of 0 in fp32 and in fp16


@dataclass(frozen=True)
class BarCells:
    """Rows and columns of the low-resolution logits, counted from each side, that no pixel of the frame reads."""

    top: int
    bottom: int
    left: int
    right: int

    def __bool__(self) -> bool:
        return bool(self.top or self.bottom or self.left or self.right)


def bar_cells(place: Placement, low: Tuple[int, int], upsample: str) -> BarCells:
    """The cells of logits of ``low`` (h, w) that lie in the bars of a placed frame alone.

    Args:
        place: where the frame lies on the canvas.
        low: size of the logits.
        upsample: rule that enlarges them: "nearest", "bilinear" or "bilinear_corners".
    """
    top, below = _read(place.top, place.height, place.canvas[0], low[0], upsample)
    left, beside = _read(place.left, place.width, place.canvas[1], low[1], upsample)
    return BarCells(top, low[0] - below, left, low[1] - beside)


def _read(start: int, length: int, size: int, cells: int, upsample: str) -> Tuple[int, int]:
    """[first, end) of the cells that the pixels start .. start + length - 1 of a side of ``size`` pixels read."""
    last = start + length - 1
    if upsample == "nearest":
        return start * cells // size, last * cells // size + 1
    if upsample == "bilinear":
        low, high = (start + 0.5) * cells / size - 0.5, (last + 0.5) * cells / size - 0.5
    else:
        step = (cells - 1) / max(1, size - 1)
        low, high = start * step, last * step
    return max(0, math.floor(low)), min(cells, math.floor(high) + 2)


def make_certain(logits: np.ndarray, cells: BarCells) -> None:
    """Write the bars' cells of float logits [1,C,h,w], in place."""
    rows, columns = logits.shape[2:]
    for part in (
        logits[:, :, : cells.top], logits[:, :, rows - cells.bottom :],
        logits[:, :, :, : cells.left], logits[:, :, :, columns - cells.right :],
    ):  # fmt: skip
        part[:, 1:] = _CERTAIN
        part[:, 0] = 0.0


class DeviceBars:
    """The same on device memory: copies of constants, which a CUDA graph can hold.

    Args:
        context: the device (engines/cuda.py).
        shape: (C, h, w) of the logits.
        cells: what to write.
        logits_type: "fp32" or "fp16".
    """

    def __init__(self, context: Any, shape: Tuple[int, int, int], cells: BarCells, logits_type: str) -> None:
        from crispseg.engines.cuda import upload_now

        dtype = {"fp32": np.float32, "fp16": np.float16}[logits_type]
        classes, rows, columns = shape
        item = np.dtype(dtype).itemsize
        row = columns * item
        self._buffers: List[Any] = []
        self._copies: List[Tuple[int, int, int, int, int]] = []  # offset, pitch, source, width (bytes), lines
        for count, offset in ((cells.top, 0), (cells.bottom, (rows - cells.bottom) * row)):
            if count:
                values = np.full((classes, count * columns), _CERTAIN, dtype)
                self._add(upload_now, context, values, offset, rows * row)
        for count, offset in ((cells.left, 0), (cells.right, row - cells.right * item)):
            if count:
                values = np.full((classes, rows, count), _CERTAIN, dtype)
                self._add(upload_now, context, values, offset, row)

    def _add(self, upload: Any, context: Any, values: np.ndarray, offset: int, pitch: int) -> None:
        values[0] = 0.0
        buffer = upload(context, values)
        self._buffers.append(buffer)
        width = values.shape[-1] * values.itemsize
        self._copies.append((offset, pitch, buffer.address, width, values.size // values.shape[-1]))

    def enqueue(self, stream: Any, logits: int) -> None:
        """Put the copies on a stream. ``logits``: device address."""
        for offset, pitch, source, width, lines in self._copies:
            stream.copy_rows(logits + offset, pitch, source, width, width, lines)

    def close(self) -> None:
        """Free the constants."""
        for buffer in self._buffers:
            buffer.close()
