"""How a turn of CRM is cut: tiles of queries for the backbone, and the window of the picture that each needs."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import numpy as np

from crispseg.runtime.crm_tables import F32, Axis

Range = Tuple[int, int]
#: Side of the largest square window of the backbone, px.
TILE_SIDE = 1792
#: Most cells along a side of a fusion block, without the few that its last queries share with the next one.
FUSION_CELLS = 256


def split(total: int, parts: int, unit: int) -> List[Range]:
    """About equal ranges of 0..total, each a multiple of ``unit`` long but for the last."""
    length = -(-math.ceil(total / parts) // unit) * unit
    return [(start, min(start + length, total)) for start in range(0, total, length)]


def blocks(axis: Axis, queries: Range, unit: int) -> List[Range]:
    """Queries whose cells make one fusion block; ``unit``: queries of a decoder block along this axis."""
    length = unit * max(1, FUSION_CELLS * axis.queries // (axis.cells[0] * unit))
    return [(start, min(start + length, queries[1])) for start in range(queries[0], queries[1], length)]


def plan(
    rows: Axis, columns: Axis, block: Tuple[int, int], area: int, side: Optional[int] = None
) -> Tuple[List[Range], List[Range]]:
    """Ranges of queries (rows, columns) whose windows hold at most ``area`` scaled pixels, with the least overlap.

    ``side``: longest side of a window, for engines with a profile; None = any. When not even the smallest windows fit,
    those are taken: a window has 290 px and more of surroundings.
    """
    choices = [
        [_lengths(axis, unit, parts) for parts in _parts(axis, unit)] for axis, unit in zip((rows, columns), block)
    ]
    best, least = None, (2, 0)
    for ranges_y, long_y, sum_y in choices[0]:
        for ranges_x, long_x, sum_x in choices[1]:
            largest = long_y * long_x
            fits = largest <= area and (side is None or max(long_y, long_x) <= side)
            cost = (0, sum_y * sum_x) if fits else (1, largest)
            if cost < least:
                best, least = (ranges_y, ranges_x), cost
    assert best is not None
    return best


def _parts(axis: Axis, unit: int) -> range:
    return range(1, min(axis.queries // unit, max(1, axis.size // 128)) + 2)


def _lengths(axis: Axis, unit: int, parts: int) -> Tuple[List[Range], int, int]:
    ranges = split(axis.queries, parts, unit)
    lengths = [stop - start for start, stop in (axis.window(*r) for r in ranges)]
    return ranges, max(lengths), sum(lengths)


def picture_window(
    image: np.ndarray,
    mask: np.ndarray,
    axes: Tuple[Axis, Axis],
    reflect: Tuple[np.ndarray, np.ndarray],
    window: Tuple[Range, Range],
    mean: np.ndarray,
    std: np.ndarray,
) -> np.ndarray:
    """A window of the scaled network input: float32 [1,4,h,w].

    Args:
        image: uint8 [H,W,3] RGB without border.
        mask: float32, probability with border.
        axes: rows and columns of the turn.
        reflect: source row and column in ``image`` of each bordered place.
        window: ranges of scaled rows and columns.
        mean: RGB, 0..255.
        std: RGB, 0..255.
    """
    (rows, rows_up, rows_part), (columns, columns_up, columns_part) = (
        tuple(table[a:b] for table in axis.resize) for axis, (a, b) in zip(axes, window)
    )
    result = np.empty((1, 4, len(rows), len(columns)), F32)

    def add(rows: np.ndarray, columns: np.ndarray, weight: np.ndarray, first: bool) -> None:
        colours = image[np.ix_(reflect[0][rows], reflect[1][columns])]
        part = mask[np.ix_(rows, columns)]
        for channel in range(4):
            value = part if channel == 3 else colours[..., channel]
            if first:
                np.multiply(value, weight, out=result[0, channel])
            else:
                result[0, channel] += value * weight

    if not rows_part.any() and not columns_part.any():
        add(rows, columns, np.ones((1, 1), F32), True)
    else:
        down, right = rows_part[:, None], columns_part[None]
        add(rows, columns, (1 - down) * (1 - right), True)
        add(rows, columns_up, (1 - down) * right, False)
        add(rows_up, columns, down * (1 - right), False)
        add(rows_up, columns_up, down * right, False)
    for channel in range(3):
        plane = result[0, channel]
        plane -= mean[channel]
        plane /= std[channel]
    plane = result[0, 3]
    plane -= F32(0.5)
    plane *= F32(2)
    return result
