"""Dilation of masks by a disk, as OpenCV's MORPH_ELLIPSE kernels have it, in numpy."""

from __future__ import annotations

from typing import List

import numpy as np


def half_widths(radius: int) -> List[int]:
    """Half the width of each row of the kernel, from its top row to its bottom row: 2 * radius + 1 numbers."""
    return [int(np.rint(np.sqrt(radius * radius - y * y))) for y in range(-radius, radius + 1)]


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Bool [H,W] grown by the disk of side 2 * radius + 1. What lies outside the picture counts as nothing."""
    widths = half_widths(radius)
    result = np.zeros_like(mask)
    wide = mask.copy()  # grown sideways; the rows of a disk only get wider towards its middle
    width = 0
    for y in range(radius, -1, -1):
        while width < widths[radius + y]:
            width += 1
            if width < mask.shape[1]:
                wide[:, width:] |= mask[:, :-width]
                wide[:, :-width] |= mask[:, width:]
        if y == 0:
            result |= wide
        elif y < mask.shape[0]:
            result[y:] |= wide[:-y]
            result[:-y] |= wide[y:]
    return result


def gradient(mask: np.ndarray, radius: int) -> np.ndarray:
    """Bool [H,W]: dilation minus erosion, the band around the outline of a mask. The picture's border is no outline."""
    rows, columns = (_changes(mask, axis, radius) for axis in (0, 1))
    result = np.zeros_like(mask)
    if rows.stop > rows.start and columns.stop > columns.start:
        part = mask[rows, columns]
        result[rows, columns] = dilate(part, radius) & dilate(~part, radius)
    return result


def _changes(mask: np.ndarray, axis: int, margin: int) -> slice:
    """Places along an axis within ``margin`` of an outline, with one more for the neighbours of the outline."""
    other = 1 - axis
    across = (mask != np.roll(mask, 1, axis=other)).any(axis=other)
    along = (np.diff(mask.astype(np.int8), axis=axis) != 0).any(axis=other)
    across[1:] |= along
    across[:-1] |= along
    places = np.flatnonzero(across)
    if not len(places):
        return slice(0, 0)
    return slice(max(0, int(places[0]) - margin - 1), int(places[-1]) + margin + 2)
