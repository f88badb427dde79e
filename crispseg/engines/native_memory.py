"""Memory of the native engine that grows on demand and is never given back while the engine lives."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

_ALIGN = 64
_SLACK = 4  # a quarter more than asked: frames differ a little in their number of sites


def aligned(size: int) -> np.ndarray:
    """uint8 [size] at an address divisible by 64."""
    memory = np.empty(size + _ALIGN, np.uint8)
    start = -memory.ctypes.data % _ALIGN
    return memory[start : start + size]


def shape_only(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Zeros of this shape that take no memory: they stand for a weight that is already packed."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def is_shape_only(array: np.ndarray) -> bool:
    """Whether an array holds no values of its own (:func:`shape_only`)."""
    return array.ndim > 0 and not any(array.strides)


class Room:
    """A growing array. Its content is lost when it grows; ``array`` and ``address`` change then."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.array = np.empty(0, self.dtype)
        self.address = 0

    def ensure(self, count: int) -> int:
        """Address of room for ``count`` elements (at least one)."""
        if count > len(self.array) or not self.address:
            self.array, self.address = np.empty(0, self.dtype), 0  # give the old memory back first
            size = max(1, count + count // _SLACK)
            self.array = aligned(size * self.dtype.itemsize).view(self.dtype)
            self.address = self.array.ctypes.data
        return self.address

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.array.nbytes


class Slot:
    """Memory of feature matrices: ``pad`` zeros, which are the zero row in front of row 0 at any stride, then rows.

    Rows are float32, or uint8 where the byte ``zero`` means 0.
    """

    def __init__(self, pad: int, dtype: Any = np.float32, zero: int = 0) -> None:
        self.room = Room(dtype)
        self.zero = zero
        line = _ALIGN // self.itemsize
        self.pad = -(-pad // line) * line  # row 0 begins on a cache line

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return self.room.dtype.itemsize

    def ensure(self, count: int) -> int:
        """Address of row 0 of room for ``count`` values and a word. The zero row in front is never written to."""
        before = self.room.array  # not the address: new memory often lies where the old one was
        address = self.room.ensure(self.pad + count + 4)
        if self.room.array is not before:
            self.room.array[: self.pad] = self.zero
        return address + self.itemsize * self.pad

    def rows(self, n: int, width: int) -> np.ndarray:
        """View [n, width] of the rows."""
        return self.room.array[self.pad : self.pad + n * width].reshape(n, width)
