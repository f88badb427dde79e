"""Maps of pictures as rows [pixels, channels], and what runs on them between the native convolutions."""

from __future__ import annotations

from ctypes import byref
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from crispseg.plugins import native_ops as ops
from crispseg.plugins.loader import ConvArguments, Native

GROUPS = 32
EPSILON = 1e-5
_BLOCK_BYTES = 1 << 18  # a block and its scratch stay in the L2 cache


class Store:
    """Memory of maps that are no longer in use, by size: fresh pages cost as much as writing them once more."""

    def __init__(self) -> None:
        self._free: Dict[int, List[np.ndarray]] = {}

    def take(self, size: int) -> np.ndarray:
        """Bytes uint8 [size], aligned, with any content."""
        free = self._free.get(size)
        return free.pop() if free else ops.aligned(size)

    def give(self, memory: np.ndarray) -> None:
        """Take back what :meth:`take` gave."""
        self._free.setdefault(len(memory), []).append(memory)

    def clear(self) -> None:
        """Free what is not in use."""
        self._free.clear()


class Rows:
    """``values`` float32 [count * side * side, channels] of ``count`` square pictures, behind a row of zeros.

    The memory goes back to ``store`` when the last reference to the object goes; ``values`` must not outlive it.
    """

    def __init__(self, store: Store, count: int, side: int, channels: int) -> None:
        """Any content but for the row of zeros."""
        self.store, self.count, self.side = store, count, side
        self._memory = store.take((count * side * side + 1) * channels * 4)
        rows = self._memory.view(np.float32).reshape(-1, channels)
        rows[0] = 0
        self.values = rows[1:]

    def __del__(self) -> None:
        self.store.give(self._memory)

    def pictures(self) -> np.ndarray:
        """View [count, side * side, channels]."""
        return self.values.reshape(self.count, self.side * self.side, -1)

    def joined(self, other: Rows) -> Rows:
        """Channels of both, these first."""
        out = Rows(self.store, self.count, self.side, self.values.shape[1] + other.values.shape[1])
        np.concatenate([self.values, other.values], 1, out=out.values)
        return out

    def twice(self) -> Rows:
        """Every pixel twice in either direction."""
        side, channels = self.side, self.values.shape[1]
        out = Rows(self.store, self.count, 2 * side, channels)
        cells = self.values.reshape(self.count * side, 1, side, 1, channels)
        out.values.reshape(self.count * side, 2, side, 2, channels)[:] = cells
        return out


class Grid:
    """Where the neighbours lie among the rows of ``count`` pictures of one side: maps of the convolutions."""

    def __init__(self, native: Native, count: int, side: int) -> None:
        """``tiles`` for Winograd; ``same`` int32 [rows, 9] and ``down`` (stride 2) for the others: made when asked."""
        self._native, self._count, self._side = native, count, side
        self._tiles: Dict[int, ops.Tiles] = {}
        self._same: Optional[np.ndarray] = None
        self._down: Optional[np.ndarray] = None

    def tiles(self, tile: int) -> ops.Tiles:
        """Winograd's tiles of ``tile`` pixels a side."""
        if tile not in self._tiles:
            count, side = self._count, self._side
            picture, y, x = np.meshgrid(np.arange(count), np.arange(side), np.arange(side), indexing="ij")
            # A tile's height of empty rows between pictures keeps them apart and the tiles aligned.
            coords = np.stack([picture * (side + tile) + y, x], -1).reshape(-1, 2).astype(np.int32)
            coords = np.ascontiguousarray(coords)
            self._tiles[tile] = ops.winograd_plan(self._native, coords, count * (side + tile), side, tile)
        return self._tiles[tile]

    @property
    def same(self) -> np.ndarray:
        """Neighbours of every pixel, int32 [count * side * side, 9]: tap ky + 3 kx; -1 = none."""
        if self._same is None:
            self._same = self._table(1)
        return self._same

    @property
    def down(self) -> np.ndarray:
        """Neighbours of every second pixel of both axes, int32 [count * ceil(side / 2)^2, 9], as :attr:`same`."""
        if self._down is None:
            self._down = self._table(2)
        return self._down

    def _table(self, stride: int) -> np.ndarray:
        side = self._side
        rows = np.pad(np.arange(self._count * side * side).reshape(self._count, side, side), ((0, 0), (1, 1), (1, 1)),
                      constant_values=-1)  # fmt: skip
        taps = [rows[:, ky : ky + side : stride, kx : kx + side : stride] for kx in range(3) for ky in range(3)]
        return np.ascontiguousarray(np.stack(taps, -1).reshape(-1, 9).astype(np.int32))

    def direct(self, native: Native, arguments: ConvArguments) -> None:
        """Run a convolution by its table."""
        native.call("cs_sparse_conv", byref(arguments))


def norm_silu(x: Rows, gamma: np.ndarray, beta: np.ndarray) -> Rows:
    """silu(group_norm(x)); gamma and beta float32 [1, C]."""
    return _normalise(x, gamma, beta, True)


def group_norm(x: Rows, gamma: np.ndarray, beta: np.ndarray) -> Rows:
    """GroupNorm of every picture over its pixels and the channels of a group; gamma and beta float32 [1, C]."""
    return _normalise(x, gamma, beta, False)


def _normalise(x: Rows, gamma: np.ndarray, beta: np.ndarray, silu: bool) -> Rows:
    channels = x.values.shape[1]
    out = Rows(x.store, x.count, x.side, channels)
    step = max(1, _BLOCK_BYTES // (4 * channels))
    room = np.empty((step, channels), np.float32)
    for given, made in zip(x.pictures(), out.pictures()):
        mean, deviation = _statistics(given, room)
        scale = gamma[0] / deviation
        shift = beta[0] - mean * scale
        # y / (1 + exp(-y)) is n / (-1 - exp(n)) with n = -y: one pass less.
        sign = -1 if silu else 1
        scale, shift = (sign * scale).astype(np.float32), (sign * shift).astype(np.float32)
        with np.errstate(over="ignore"):  # to infinity, which gives the right 0
            for start in range(0, len(given), step):
                block, target = given[start : start + step], made[start : start + step]
                np.multiply(block, scale, out=target)
                np.add(target, shift, out=target)
                if silu:
                    share = room[: len(block)]
                    np.exp(target, out=share)
                    np.subtract(np.float32(-1), share, out=share)
                    np.divide(target, share, out=target)
    return out


def _statistics(given: np.ndarray, room: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Mean and deviation float64 [C] of the group of every channel; float32 [P, C] in one pass.

    Sums are taken of the distance to a first guess of the mean, else the squares would swallow the deviation.
    """
    step, channels = room.shape
    each = channels // GROUPS
    guess = np.repeat(_by_group(given[:step].mean(0, dtype=np.float64)) / each, each).astype(np.float32)
    ones = np.ones((1, step), np.float32)
    total, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(given), step):
        block = given[start : start + step]
        distance, one = room[: len(block)], ones[:, : len(block)]
        np.subtract(block, guess, out=distance)
        total += (one @ distance)[0]
        np.multiply(distance, distance, out=distance)
        squares += (one @ distance)[0]
    numbers = len(given) * each
    off = _by_group(total) / numbers
    variance = np.maximum(_by_group(squares) / numbers - off * off, 0)
    return guess + np.repeat(off, each), np.repeat(np.sqrt(variance + EPSILON), each)


def _by_group(values: np.ndarray) -> np.ndarray:
    return values.reshape(GROUPS, -1).sum(1)


def attend(qkv: Rows, heads: int) -> Rows:
    """Attention of every picture over its pixels: rows [q of all heads, k, v] -> rows of the mixed values."""
    channels = qkv.values.shape[1] // 3
    out = Rows(qkv.store, qkv.count, qkv.side, channels)
    for given, made in zip(qkv.pictures(), out.pictures()):
        q, k, v = (_heads(given[:, i * channels : (i + 1) * channels], heads) for i in range(3))
        scores = q @ k.transpose(0, 2, 1)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        made.reshape(len(made), heads, -1)[:] = (scores @ v).transpose(1, 0, 2)
    return out


def _heads(rows: np.ndarray, heads: int) -> Any:
    return np.ascontiguousarray(rows.reshape(len(rows), heads, -1).transpose(1, 0, 2))
