"""Where CRM reads: one-dimensional tables of cells, relative coordinates and interpolation weights.

A grid of queries, the four shifted reads of each, and every resize are separable, so two axes describe them all.
Everything is float32 in the order of operations of the published code: near the border of a cell the last bit of a
coordinate decides which feature is read, and half precision is out of the question (the shift is 1e-6).
"""

from __future__ import annotations

from typing import Tuple

import numpy as np

F32 = np.float32
EPSILON = 1e-6

# Pixels on either side that a value of the backbone's outputs depends on, counted from its first pixel.
REACH_FIRST, REACH_SECOND, REACH_THIRD = 3, 17, 133
STRIDE = 8


def cell_centres(count: int) -> np.ndarray:
    """float32 [count]: centres of equal cells of -1..1."""
    radius = 1.0 / count
    return F32(2 * radius) * np.arange(count, dtype=F32) + F32(-1.0 + radius)


def shifted_reads(points: np.ndarray, count: int) -> Tuple[np.ndarray, np.ndarray]:
    """Cells that points read along one axis, and where they lie seen from those cells.

    Args:
        points: float32 [Q], in -1..1.
        count: cells along the axis.

    Returns:
        (cells int64 [2,Q] read when shifted by half a cell down and up, relative coordinates float32 [2,Q] in cells
        times 2).
    """
    centres = cell_centres(count)
    cells = np.empty((2, len(points)), np.int64)
    for row, sign in enumerate((-1, 1)):
        shifted = np.clip(points + F32(sign / count + EPSILON), F32(-1 + EPSILON), F32(1 - EPSILON))
        cells[row] = np.rint((shifted + F32(1)) * F32(count / 2) - F32(0.5)).astype(np.int64)  # half to even
    return cells, (points - centres[cells]) * F32(count)


def aligned(source: int, target: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear resize with aligned corners: (lower int64, upper int64, weight of the upper float32), each [target]."""
    scale = F32(source - 1) / F32(target - 1) if target > 1 else F32(0)
    place = scale * np.arange(target, dtype=F32)
    lower = np.minimum(place.astype(np.int64), source - 1)
    return lower, np.minimum(lower + 1, source - 1), place - lower.astype(F32)


class Axis:
    """One axis of one turn: queries on the full side, the network on the scaled one.

    ``queries``: length of the padded picture; ``size``: scaled length; ``cells``: lengths of the three feature maps;
    ``reads`` int64 [2,queries], ``relative`` float32 [2,queries], ``points`` float32 [queries].
    """

    def __init__(self, queries: int, scale: float) -> None:
        """Banker's rounding of the scaled length; at least one pixel."""
        self.queries = queries
        self.size = max(1, round(queries * scale))
        half = _halved(self.size)
        self.cells = (half, _halved(half), _halved(_halved(half)))
        self.points = cell_centres(queries)
        self.reads, self.relative = shifted_reads(self.points, half)
        self.extent = F32(2.0 / queries) * F32(half)
        self.resize = aligned(queries, self.size)
        self._ups = tuple(aligned(count, half) for count in self.cells[1:])

    def cells_of(self, start: int, stop: int) -> Tuple[int, int]:
        """Range of cells that queries start..stop read."""
        return int(self.reads[0, start]), int(self.reads[1, stop - 1]) + 1

    def with_border(self, cells: Tuple[int, int]) -> Tuple[int, int]:
        """A range of cells and one more on each side, inside the map."""
        return max(0, cells[0] - 1), min(self.cells[0], cells[1] + 1)

    def sources(self, cells: Tuple[int, int], level: int) -> Tuple[int, int]:
        """Range of the second (level 0) or third (1) map that cells are interpolated from."""
        lower, upper, _ = self._ups[level]
        return int(lower[cells[0]]), int(upper[cells[1] - 1]) + 1

    def window(self, start: int, stop: int) -> Tuple[int, int]:
        """Scaled pixels that the answers to queries start..stop depend on; begins at a multiple of the stride."""
        cells = self.with_border(self.cells_of(start, stop))
        low, high = 2 * cells[0] - REACH_FIRST, 2 * (cells[1] - 1) + REACH_FIRST
        for level, (reach, step) in enumerate(((REACH_SECOND, 4), (REACH_THIRD, 8))):
            first, end = self.sources(cells, level)
            low, high = min(low, step * first - reach), max(high, step * (end - 1) + reach)
        return max(0, low // STRIDE * STRIDE), min(self.size, -(-(high + 1) // STRIDE) * STRIDE)

    def matrix(self, cells: Tuple[int, int], level: int, sources: Tuple[int, int]) -> np.ndarray:
        """Interpolation float32 [cells with a border of one, sources]; rows outside the map are 0."""
        lower, upper, weight = self._ups[level]
        result = np.zeros((cells[1] - cells[0] + 2, sources[1] - sources[0]), F32)
        inside = self.with_border(cells)
        places = np.arange(*inside)
        rows = places - cells[0] + 1
        np.add.at(result, (rows, lower[places] - sources[0]), F32(1) - weight[places])
        np.add.at(result, (rows, upper[places] - sources[0]), weight[places])
        return result

    def block(self, start: int, length: int, first_cell: int) -> Tuple[np.ndarray, np.ndarray]:
        """Decoder tables of queries start..start+length: (cells int64 [2*length], terms float32 [3,2*length]).

        Queries beyond the end repeat the last one.
        """
        chosen = np.minimum(np.arange(start, start + length), self.queries - 1)
        terms = np.empty((3, 2 * length), F32)
        terms[0] = self.relative[:, chosen].reshape(-1)
        terms[1] = np.tile(self.points[chosen], 2)
        terms[2] = self.extent
        return self.reads[:, chosen].reshape(-1) - first_cell, terms


def reflected(length: int, border: int) -> np.ndarray:
    """int64 [length+2*border]: source of each place of a reflected border, which may be longer."""
    return np.pad(np.arange(length), border, mode="reflect")


def _halved(length: int) -> int:
    return -(-length // 2)
